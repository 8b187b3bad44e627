"""How the processes of one run find each other, and notice when one is lost.

JAX ends a process by SIGABRT when a peer does not come or the port is taken. So they
first meet over a plain socket at the same address, where each of these is an error that
names it.
"""

import logging
import os
import re
import socket
import sys
import time
from typing import Any

import jax

from dinov2_jax import errors, watchdog

KEYS = [f"DINOV2_JAX_{name}" for name in ("COORDINATOR", "PROCESSES", "PROCESS")]
GREETING = "dinov2-jax"

WAIT = 300.0
"""Seconds to wait for the others at the start, without DINOV2_JAX_TIMEOUT."""

_watch: list[watchdog.Watch] = []  # this process's one, where there are several


def start() -> str:
    """Join the other processes of this run, where a cluster's variables tell of any.

    One process needs nothing. `DINOV2_JAX_COORDINATOR=host:port`, `..._PROCESSES` and
    `..._PROCESS` say it by hand, and wait for `..._TIMEOUT` seconds (300). The tasks of
    an `srun` are recognised, and so are the hosts of a TPU slice and several slices,
    on virtual machines and in Kubernetes, by JAX itself.
    Returns: how the processes were found, in words; "" for a single one.
    Raises: ValueError if the variables do not fit together; TimeoutError naming the
        address and who is missing; OSError if the coordinator's port is taken.
    """
    values, host, timeout = [os.environ.get(key) for key in KEYS], None, WAIT
    if any(values) and not all(values):
        raise errors.InputError(f"Set all of {', '.join(KEYS)}, or none; got {values}.")
    given = values if all(values) else _srun()
    if given:
        address, processes, process, timeout = _parsed(*given)
        if processes > 1:
            meet(address, processes, process, timeout)
        jax.distributed.initialize(
            address,
            processes,
            process,
            local_device_ids=None if all(values) else _gpus(),
            initialization_timeout=round(timeout),
        )
        host = address.rsplit(":", 1)[0]
    elif _on_tpus():
        jax.distributed.initialize()
    if jax.process_count() == 1:
        return ""
    if jax.process_index():
        # What is said of a source is the same on all processes.
        logging.getLogger("dinov2_jax.data").setLevel(logging.ERROR)
    _watch.append(watchdog.begin(host, timeout))
    sys.excepthook = _unexpected
    means = "variables" if all(values) else "SLURM" if given else "the TPU slice"
    return f"{jax.process_count()} processes, found by {means}"


def leave(code: int, reason: str = "") -> int:
    """Say goodbye to the other processes; returns the exit code.

    Args:
        code: of the command, 0 if all went well.
        reason: what the others are told of an error.
    After an error a process of several ends here: the orderly shutdown of JAX would
    wait for processes that wait for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if _watch:
        _watch.pop().leave("" if code == 0 else reason or f"exit code {code}")
    if code and jax.distributed.is_initialized():
        os._exit(code)
    return code


def _unexpected(kind: type, error: BaseException, trace: Any) -> None:
    """What nobody has caught: shown in full here, in one line on the others."""
    sys.__excepthook__(kind, error, trace)
    leave(1, f"{kind.__name__}: {error}")


def _srun() -> list[str] | None:
    """Address, number and index from the variables of an srun of several tasks.

    A batch script that calls Python without srun has no step, and is one process.
    """
    number = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    index, nodes = (os.environ.get(f"SLURM_{k}") for k in ("PROCID", "STEP_NODELIST"))
    if not number.isdigit() or int(number) < 2 or index is None or not nodes:
        return None
    # node7,node9 or node[07-12,15] or rack[1-2]node[3-4]: the first of each bracket
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    first = re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)
    # One port a job, of those that nobody registers.
    port = 61440 + int(os.environ.get("SLURM_JOB_ID", "0")) % 4096
    return [f"{first}:{port}", number, index]


def _gpus() -> list[int] | None:
    """All GPUs of a node whose one task this is; None for JAX's choice, one a task."""
    tasks, nodes = (os.environ.get(f"SLURM_STEP_NUM_{k}") for k in ("TASKS", "NODES"))
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if tasks != nodes or not gpus.isdigit():
        return None
    return list(range(int(gpus)))


def _on_tpus() -> bool:
    """Whether this host's chips may belong to a slice with others; asks no network.

    A host that only compiles for TPUs has none; one with chips asks its metadata
    server, where the variables of Kubernetes do not tell.
    """
    if os.environ.get("JAX_PLATFORMS", "tpu").partition(",")[0] not in ("", "tpu"):
        return False
    hosts = [
        os.environ.get(f"TPU_{k}") for k in ("PROCESS_ADDRESSES", "WORKER_HOSTNAMES")
    ]
    if any(hosts):
        several = "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
        return several or any("," in text for text in hosts if text)
    if os.environ.get("TPU_SKIP_MDS_QUERY"):
        return False
    return any(os.path.exists(f"/dev/{name}") for name in ("accel0", "vfio/0"))


def _parsed(address: str, processes: str, process: str) -> tuple:
    """The three variables and the time-out, as what they mean."""
    given = f"{', '.join(KEYS)}={address}, {processes}, {process}"
    try:
        number, index = int(processes), int(process)
        timeout = float(os.environ.get("DINOV2_JAX_TIMEOUT", WAIT))
        host, port = address.rsplit(":", 1)
        if not host or not 0 < int(port) < 65536 or timeout <= 0:
            raise errors.InputError
    except ValueError as error:
        raise errors.InputError(
            f"{given} need HOST:PORT, a number and an index, and DINOV2_JAX_TIMEOUT "
            "seconds above 0."
        ) from error
    if not 0 <= index < number:
        raise errors.InputError(f"{given}: the index must lie in 0..{number - 1}.")
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
        raise errors.FileError(
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
        raise errors.ProcessTimeout(
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
    raise errors.ProcessTimeout(
        f"Process {process} did not meet the others at {host}:{port} within "
        f"{timeout:g} s: {why}. Check the address and that process 0 runs, or raise "
        "DINOV2_JAX_TIMEOUT."
    )
