"""How the processes of one run find each other.

JAX ends a process by SIGABRT when a peer does not come or the port is taken. So they
first meet over a plain socket at the same address, where each of these is an error that
names it.
"""

import os
import socket
import time

import jax

KEYS = [f"DINOV2_JAX_{name}" for name in ("COORDINATOR", "PROCESSES", "PROCESS")]
GREETING = "dinov2-jax"


def start() -> None:
    """Join the other processes of this run, where a cluster's variables tell of any.

    One process needs nothing. `DINOV2_JAX_COORDINATOR=host:port`, `..._PROCESSES` and
    `..._PROCESS` say it by hand, and wait for `..._TIMEOUT` seconds (300); a TPU pod
    and SLURM are recognised by JAX itself.
    Raises: ValueError if the variables do not fit together; TimeoutError naming the
        address and who is missing; OSError if the coordinator's port is taken.
    """
    values = [os.environ.get(key) for key in KEYS]
    if all(values):
        address, processes, process, timeout = _parsed(*values)
        if processes > 1:
            meet(address, processes, process, timeout)
        jax.distributed.initialize(
            address, processes, process, initialization_timeout=round(timeout)
        )
    elif any(values):
        raise ValueError(f"Set all of {', '.join(KEYS)}, or none; got {values}.")
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 or _on_tpu_pod():
        jax.distributed.initialize()


def _on_tpu_pod() -> bool:
    """Whether the host's environment names several TPU workers."""
    return "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def _parsed(address: str, processes: str, process: str) -> tuple:
    """The three variables and the time-out, as what they mean."""
    given = f"{', '.join(KEYS)}={address}, {processes}, {process}"
    try:
        number, index = int(processes), int(process)
        timeout = float(os.environ.get("DINOV2_JAX_TIMEOUT", "300"))
        host, port = address.rsplit(":", 1)
        if not host or not 0 < int(port) < 65536 or timeout <= 0:
            raise ValueError
    except ValueError as error:
        raise ValueError(
            f"{given} need HOST:PORT, a number and an index, and DINOV2_JAX_TIMEOUT "
            "seconds above 0."
        ) from error
    if not 0 <= index < number:
        raise ValueError(f"{given}: the index must lie in 0..{number - 1}.")
    return address, number, index, timeout


def meet(address: str, processes: int, process: int, timeout: float) -> None:
    """Return once all processes are there, on every one of them.

    Args:
        address: host:port of process 0, free there.
        processes: how many there are.
        process: this one's index.
        timeout: seconds to wait.
    Raises: TimeoutError naming the address and who is missing; OSError if process 0
        cannot listen there.
    """
    host, port = address.rsplit(":", 1)
    until = time.monotonic() + timeout
    if process:
        _join(host, int(port), process, until, timeout)
    else:
        _gather(address, int(port), processes, until, timeout)


def _gather(address: str, port: int, processes: int, until: float, timeout: float):
    """Process 0: wait for all others, then tell each of them."""
    try:
        listener = socket.create_server(("", port), backlog=processes)
    except OSError as error:
        raise OSError(
            f"Process 0 cannot listen at {address} ({error.strerror}); end what uses "
            f"the port, or choose another in {KEYS[0]}."
        ) from error
    there: dict[int, socket.socket] = {}
    with listener:
        while len(there) < processes - 1 and time.monotonic() < until:
            listener.settimeout(max(until - time.monotonic(), 0.01))
            try:
                peer, _ = listener.accept()
                peer.settimeout(5)
                word, index = peer.recv(64).decode().split()
            except (OSError, ValueError):  # nobody came, or no process of ours
                continue
            if word == GREETING and 0 < int(index) < processes:
                there[int(index)] = peer
        missing = sorted(set(range(1, processes)) - set(there))
        for peer in there.values():
            peer.sendall(f"missing {missing}\n".encode() if missing else b"go\n")
            peer.close()
    if missing:
        raise TimeoutError(
            f"{len(missing)} of {processes} processes did not come to {address} within "
            f"{timeout:g} s: {missing[:16]}. Start all with the same {KEYS[0]}, or "
            "raise DINOV2_JAX_TIMEOUT."
        )


def _join(host: str, port: int, process: int, until: float, timeout: float) -> None:
    """Another process: greet process 0 until it answers, and wait for its word."""
    said = ""
    while time.monotonic() < until:
        try:
            with socket.create_connection((host, port), timeout=5) as peer:
                peer.sendall(f"{GREETING} {process}\n".encode())
                # Process 0 gives up first, and tells who is missing.
                peer.settimeout(max(until - time.monotonic(), 0) + 5)
                said = peer.recv(4096).decode().strip()
        except OSError:
            time.sleep(min(0.2, max(until - time.monotonic(), 0)))
            continue
        if said:
            break
    if said == "go":
        return
    why = f"it reports {said}" if said else "nothing of ours answers there"
    raise TimeoutError(
        f"Process {process} did not meet the others at {host}:{port} within "
        f"{timeout:g} s: {why}. Check the address and that process 0 runs, or raise "
        "DINOV2_JAX_TIMEOUT."
    )
