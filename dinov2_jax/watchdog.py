"""Each process of a run learns at once when another one has ended.

A process that waits for a lost peer in a collective waits for minutes, and is then
ended by the runtime with a page of its own. So every process keeps one connection to
process 0, over which nothing is sent until the end: the operating system closes it
when a process is killed, and keep-alive packets find a host that went silent. Its
cost does not depend on the number of steps.
"""

import os
import selectors
import socket
import sys
import threading
import time

import numpy as np

from dinov2_jax import errors

GREETING = "dinov2-jax watch"
SILENT = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A host that has gone silent is given up after 30 seconds."""

GRACE = 1.0
"""Seconds that process 0 stays for the others: JAX aborts them when it has gone."""

LINE = (
    "dinov2-jax: process {index} of {number} {what}; process {own} stops. The same "
    "command on all hosts goes on from the newest checkpoint."
)


class Watch:
    """This process's side of the connections.

    Args:
        own: this process's index.
        number: of all processes.
        peers: index -> connection; all others for process 0, process 0 for others.
    """

    def __init__(self, own: int, number: int, peers: dict[int, socket.socket]) -> None:
        self.own, self.number, self.peers = own, number, peers
        self.leaving = False
        for peer in peers.values():
            peer.settimeout(None)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in SILENT.items():
                if hasattr(socket, name):  # macOS spells some of them otherwise
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        threading.Thread(target=self._listen, daemon=True, name="watchdog").start()

    def leave(self, reason: str = "") -> None:
        """Tell the others that this process ends, well or for a reason."""
        self.leaving = True
        self._tell(f"{self.own} {'ended: ' + reason if reason else 'done'}")
        if reason and self.own == 0:
            time.sleep(GRACE)

    def _tell(self, said: str, without: int = -1) -> None:
        """Send a line to all that can still be reached."""
        line = " ".join(said.split())[:1000] + "\n"
        for index, peer in list(self.peers.items()):
            if index != without:
                try:
                    peer.sendall(line.encode())
                except OSError:
                    continue  # it has gone, too

    def _listen(self) -> None:
        """Wait for a peer's last word, or for its connection to break."""
        selector = selectors.DefaultSelector()
        for index, peer in self.peers.items():
            selector.register(peer, selectors.EVENT_READ, index)
        while self.peers:
            for key, _ in selector.select():
                try:
                    said = key.fileobj.recv(4096).decode(errors="replace")
                except OSError:
                    said = ""
                index, _, what = said.strip().partition(" ")
                if what != "done":
                    self._stop(index or str(key.data), what or "was lost", key.data)
                selector.unregister(key.fileobj)
                del self.peers[key.data]

    def _stop(self, index: str, what: str, told_by: int) -> None:
        """End this process with one line; process 0 passes it on first."""
        if self.leaving:
            return
        self._tell(f"{index} {what}", without=told_by)
        line = LINE.format(index=index, number=self.number, what=what, own=self.own)
        # os._exit: the main thread may wait in a collective for ever.
        print(f"\n{line}", file=sys.stderr, flush=True)
        if self.own == 0:
            time.sleep(GRACE)
        os._exit(1)


def begin(host: str | None, timeout: float) -> Watch:
    """Connect the processes of an initialised `jax.distributed`.

    Args:
        host: of process 0, as the others reach it; None for its own name's address.
        timeout: seconds to wait for a connection.
    Raises: TimeoutError naming who did not connect; OSError if process 0 cannot be
        reached.
    """
    import jax
    from jax.experimental import multihost_utils

    own, number = jax.process_index(), jax.process_count()
    listener, found = None, np.zeros(5, np.int32)
    if own == 0:
        listener = socket.create_server(("", 0), backlog=number)
        address = socket.gethostbyname(host or socket.gethostname())
        found[:4] = list(socket.inet_aton(address))
        found[4] = listener.getsockname()[1]
    found = np.asarray(multihost_utils.broadcast_one_to_all(found))
    if own:
        address = socket.inet_ntoa(bytes(found[:4].tolist()))
        peer = socket.create_connection((address, int(found[4])), timeout=timeout)
        peer.sendall(f"{GREETING} {own}\n".encode())
        return Watch(own, number, {0: peer})
    with listener:
        return Watch(own, number, _accepted(listener, number, timeout))


def _accepted(listener: socket.socket, number: int, timeout: float) -> dict:
    """Connections of all other processes, by index."""
    peers: dict[int, socket.socket] = {}
    until = time.monotonic() + timeout
    while len(peers) < number - 1:
        listener.settimeout(max(until - time.monotonic(), 0.01))
        try:
            peer, _ = listener.accept()
        except TimeoutError as error:
            missing = sorted(set(range(1, number)) - set(peers))
            raise errors.ProcessTimeout(
                f"{len(missing)} of {number} processes did not connect to process 0 "
                f"within {timeout:g} s: {missing[:16]}; see what they say."
            ) from error
        peer.settimeout(5)
        greeting, _, index = _line(peer).rpartition(" ")
        if greeting == GREETING and index.isdigit():
            peers[int(index)] = peer
        else:
            peer.close()  # no process of ours
    return peers


def _line(peer: socket.socket, most: int = 64) -> str:
    """What a peer says first, and nothing of what it may have said after that."""
    said = b""
    while len(said) < most and not said.endswith(b"\n"):
        try:
            byte = peer.recv(1)
        except OSError:
            break
        if not byte:
            break
        said += byte
    return said.decode(errors="replace").strip()
