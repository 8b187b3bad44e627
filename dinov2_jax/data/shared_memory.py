"""Room in /dev/shm, through which worker processes hand their batches over."""

import contextlib
import errno
import math
import os
import signal
from collections.abc import Iterator, Sequence

from dinov2_jax import errors

PLACE = "/dev/shm"
TAKEN = 4  # batches of whoever iterates: at work, the next, and two being given back
SMALL = 2**16  # bytes of a batch's small arrays, a page each at least, and of locks
MIB = 2**20


def most(workers: int, prefetch: int, steps: int) -> int:
    """Batches that are in shared memory at once, at most.

    Grain keeps `prefetch` of each worker in its queue and as many behind it, in a thread
    of the process that iterates; both have one more in hand, for which there is no room.
    """
    return min(workers * 2 * (prefetch + 1) + TAKEN, steps)


def require(
    batch: int, workers: int, prefetch: int, steps: int, settings: Sequence[str]
) -> None:
    """Refuse batches that /dev/shm cannot take.

    Nothing is known of systems that have none, or set it no limit.

    Args:
        batch: bytes of one, but for a few.
        workers, prefetch, steps: as `most`.
        settings: names of those two for the user, the second where it can be set.
    Raises: ValueError that says how much is needed, and how to give it.
    """
    try:
        found = os.statvfs(PLACE)
    except OSError:
        return
    free, number = found.f_bavail * found.f_frsize, most(workers, prefetch, steps)
    needed = number * (batch + SMALL)
    if not found.f_blocks or needed <= free:
        return
    used = (found.f_blocks - found.f_bavail) * found.f_frsize
    raise errors.InputError(
        f"{settings[0]}={workers}: {number} batches of {batch / MIB:.1f} MiB may be in "
        f"shared memory at once, {needed / MIB:.0f} MiB in all, but {PLACE} has "
        f"{free / MIB:.0f} MiB free. {_advice(used + needed, settings)}"
    )


def handed_over(elements: Iterator, workers: int, settings: Sequence[str]) -> Iterator:
    """The elements of workers; says so where /dev/shm was full: others fill it, too.

    Args: as `require`.
    Raises: FileError for an error of a full disk that names no file, and for a worker
        that ended by SIGBUS, the signal of memory that cannot be had.
    """
    try:
        yield from elements
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC and not error.filename
        killed = f"exit code -{int(signal.SIGBUS)}." in str(error)
        if not (full or killed) or isinstance(error, errors.Error):
            raise
        size = 0
        with contextlib.suppress(OSError):
            found = os.statvfs(PLACE)
            size = found.f_blocks * found.f_frsize
        raise errors.FileError(
            f"{settings[0]}={workers}: {PLACE}, of {size / MIB:.0f} MiB, through which "
            f"workers hand their batches over, is full. {_advice(2 * size, settings)}"
        ) from error


def _advice(size: int, settings: Sequence[str]) -> str:
    """How to have so many bytes of shared memory, or need less."""
    mib = math.ceil(size / MIB) + 1
    return (
        f"Make it larger (docker run --shm-size={mib}m; Kubernetes: an emptyDir of medium "
        f"Memory mounted at {PLACE}), lower {' or '.join(settings)}, or set "
        f"{settings[0]}=0, which needs none."
    )
