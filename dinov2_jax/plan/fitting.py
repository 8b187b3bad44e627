"""Sizes of a device's batch: how it divides into groups, and the largest that fits."""

import dataclasses
from collections.abc import Callable

LARGEST = 4096
"""Images a device, at most."""

TRIES = 6
"""Compilations of one search, at most; a large model's takes minutes."""


@dataclasses.dataclass(frozen=True)
class Try:
    """One compilation: images a device, bytes that it needs where known, fits or not."""

    per_device: int
    needed: float | None
    fits: bool


def group_size(per_device: int, most: int, accumulate: int = 1) -> int:
    """The largest group of at most so many images that divides a device's batch.

    Args:
        per_device: images of a device in a step.
        most: images of a group.
        accumulate: parts of a step, each of whole groups.
    Returns: the size, 0 where none will do.
    """
    sizes = (
        n
        for n in range(1, min(most, per_device) + 1)
        if per_device % n == 0 and per_device // n % accumulate == 0
    )
    return max(sizes, default=0)


def sizes(most: int, accumulate: int = 1) -> list[int]:
    """Batches of a device worth trying: eight from each to its double, even groups.

    A size that makes much smaller groups than the recipe's is left out: in them KoLeo
    would be another loss.
    """
    found, n = [], 2 * accumulate
    while n <= LARGEST:
        if 2 * group_size(n, most, accumulate) >= min(most, n // accumulate):
            found.append(n)
        n += max(2, 2 ** (n.bit_length() - 4)) * accumulate
    return found


def largest(
    attempt: Callable[[int], Try], sizes: list[int], start: int, limit: float
) -> list[Try]:
    """Search for the largest batch that fits, in few compilations.

    Memory grows nearly as a line with the batch, so two sizes tell where to look. Near
    the limit compilers compute more to need less, so that more may fit than the line
    says: what counts is what was compiled.

    Args:
        attempt: compiles for so many images a device.
        sizes: that may be tried, rising. start: the first, or the nearest below it.
        limit: bytes of a device's memory.
    Returns: all tries in order; the answer is the largest that fits, if one does.
    """
    tries: list[Try] = []
    size = max((n for n in sizes if n <= start), default=sizes[0])
    while size is not None and len(tries) < TRIES:
        tries.append(attempt(size))
        size = _next(tries, sizes, limit)
    return tries


def _next(tries: list[Try], sizes: list[int], limit: float) -> int | None:
    """The size to try next, or None where the answer is known."""
    fitting = sorted(t.per_device for t in tries if t.fits)
    low = fitting[-1] if fitting else 0
    high = min((t.per_device for t in tries if not t.fits), default=LARGEST + 1)
    between = [n for n in sizes if low < n < high]
    if not between:
        return None
    if not fitting:
        goal = high // 4
    elif len(fitting) == 1:
        goal = min(2 * low, (low + high) // 2)
    else:
        goal = _crossing(tries, limit)
        goal = goal if goal < high else (low + high) // 2
    return max((n for n in between if n <= goal), default=between[0])


def _crossing(tries: list[Try], limit: float) -> float:
    """Where the line through the two largest sizes that fit meets the limit."""
    fitting = sorted((t.per_device, t.needed) for t in tries if t.fits)
    (a, below), (b, above) = fitting[-2:]
    slope = max((above - below) / (b - a), 1.0)
    return b + (limit - above) / slope
