"""One writer at a time in a folder: a lease that a killed process does not keep.

    FOLDER/.lease.json   who writes there: host, process, start, heartbeat

A process of this machine is looked up: a lease of one that has ended is void at once.
Of another machine only the heartbeat tells, which is the time of the file: a lease is
void when it has not been renewed for `LAPSE` seconds.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

from dinov2_jax import errors

NAME = ".lease.json"

BEAT = 10.0
"""Seconds between two heartbeats."""

LAPSE = 60.0
"""Seconds without a heartbeat after which a lease of another machine is void."""


@contextlib.contextmanager
def held(folder: str | os.PathLike, option: str) -> Iterator[None]:
    """Hold the lease of a folder, which is made if need be, and give it back.

    Where the holder is on another machine and may have been killed, this waits until
    its lease is renewed or void.

    Args:
        folder: to write in.
        option: that names the folder, such as `--out`; for the message.
    Raises: ValueError that names the holder while it lives.
    """
    folder = pathlib.Path(folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    own, path = _identity(), folder / NAME
    _acquire(path, own, option)
    done = threading.Event()
    beating = threading.Thread(
        target=_beat, args=(path, own, done), daemon=True, name="lease"
    )
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        if _read(path) == own:
            path.unlink(missing_ok=True)


def _identity() -> dict:
    """What tells this process from every other one, also of an earlier boot."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "began": _began(os.getpid()),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _machine() -> str:
    """Equal for processes that see each other: of one boot, and of one container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(
            pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        )
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(part.strip() for part in parts)


def _began(process: int) -> str | None:
    """When a process of this machine began, since its number may be used again.

    Returns: None if there is none, or it has ended; "" where that is not told.
    """
    if not os.path.exists("/proc/self/stat"):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except OSError:  # it is another user's
            return ""
        return ""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _acquire(path: pathlib.Path, own: dict, option: str) -> None:
    """Write the lease once nobody else holds it. Raises: ValueError."""
    seen, told = None, False
    while True:
        with _alone(path.parent):
            holder = _read(path)
            if holder is None or not (age := _alive(path, holder)):
                _write(path, own)
                return
            beat = _time(path)
        here = holder.get("machine") == own["machine"]
        if here or (seen is not None and beat != seen):
            raise errors.InputError(
                f"{option}={path.parent} is in use by process {holder.get('process')} "
                f"on {holder.get('host')}, since {holder.get('since')}; let it end, or "
                f"choose another {option}."
            )
        if not told:
            print(
                f"{path.parent} was in use on {holder.get('host')} {age:.0f} s ago; "
                f"waiting up to {LAPSE:.0f} s to see whether that process lives",
                file=sys.stderr,
            )
        seen, told = beat, True
        time.sleep(min(BEAT / 4, LAPSE / 4))


def _alive(path: pathlib.Path, holder: dict) -> float:
    """Seconds since the heartbeat of a lease that holds, at least a little; 0 if void."""
    if holder.get("machine") == _machine():
        number = holder.get("process")
        began = _began(number) if isinstance(number, int) else None
        return 1e-9 if began is not None and began == holder.get("began") else 0.0
    # By the clock of the disk, which is one for all machines.
    probe = path.with_name(f"{NAME}.{os.getpid()}.now")
    try:
        probe.write_text("", encoding="utf-8")
        age = _time(probe) - _time(path)
    finally:
        probe.unlink(missing_ok=True)
    return max(age, 1e-9) if age < LAPSE else 0.0


def _time(path: pathlib.Path) -> float:
    """When a file was written, seconds; 0 if it has gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _read(path: pathlib.Path) -> dict | None:
    """What a lease says; None where there is none, or no lease in the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: pathlib.Path, own: dict) -> None:
    """The lease, whole or not at all."""
    part = path.with_name(f"{NAME}.{os.getpid()}.part")
    part.write_text(json.dumps(own) + "\n", encoding="utf-8")
    os.replace(part, path)


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """One process at a time, where the file system can tell: two may begin at once."""
    place = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        place = os.open(folder, os.O_RDONLY)
        fcntl.flock(place, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if place is not None:
            os.close(place)


def _beat(path: pathlib.Path, own: dict, done: threading.Event) -> None:
    """Renew the lease; end this process if another one has taken it.

    That may happen to a process that was suspended for longer than LAPSE.
    """
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):  # the disk may come back before LAPSE
            holder = _read(path)
            if holder is None:  # somebody has removed it
                _write(path, own)
            elif holder != own:
                print(
                    f"\ndinov2-jax: process {holder.get('process')} on "
                    f"{holder.get('host')} has taken {path.parent} over; this one stops.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
            os.utime(path)
