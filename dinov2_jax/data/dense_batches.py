"""Batches of photographs with their maps, for training and for evaluation.

A batch is a pure function of (seed, step), as in `pipeline`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import build, dense, pipeline


class DenseBatch(NamedTuple):
    """Crops of one step."""

    images: np.ndarray  # [b h w 3] uint8
    targets: (
        np.ndarray
    )  # [b h w] int32 labels, -1 ignored; or float32 metres, 0 unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Builder:
    """Builds this process's part of the batch of a step."""

    source: dense.Pairs
    views: Callable[[dense.Pair, np.random.Generator], dense.Pair]
    order: grain.MapDataset
    seed: int
    batch_size: int
    first: int
    local: int

    def __call__(self, step: int) -> DenseBatch:
        made = []
        for slot in range(self.first, self.first + self.local):
            position = int(step) * self.batch_size + slot
            rng = np.random.default_rng([self.seed, build.VIEWS, position])
            made.append(self.views(self.source[int(self.order[position])], rng))
        return DenseBatch(*map(np.stack, zip(*made)))


def train_batches(
    source: dense.Pairs,
    views: Callable[[dense.Pair, np.random.Generator], dense.Pair],
    *,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    prefetch: int = 2,
) -> Iterator[DenseBatch]:
    """This process's part of the batches of steps start..stop-1.

    Args:
        source: pairs; each comes once in len(source) positions.
        views: makes a crop of a pair.
        seed: >= 0.
        batch_size: over all processes.
        start, stop: steps.
        process, processes: which part of the batch, of how many equal ones.
        threads: that build batches. prefetch: batches that are kept ready.
    Returns: an iterator; close() it to end its threads.
    Raises: ValueError at once if sizes do not fit together, and while iterating if a
        file cannot be used.
    """
    if batch_size < 1 or batch_size % processes:
        raise errors.InputError(
            f"{batch_size=} must be a positive multiple of {processes=}."
        )
    local = batch_size // processes
    builder = _Builder(
        source=source,
        views=views,
        order=pipeline.order(source, seed),
        seed=seed,
        batch_size=batch_size,
        first=process * local,
        local=local,
    )
    steps = grain.MapDataset.range(start, stop).map(builder)
    return pipeline.iterate(steps, 0, threads, prefetch)


def val_pairs(
    source: dense.Pairs,
    *,
    limit: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[tuple[int, dense.Pair]]:
    """Number and pair of this process's part of a source, in order.

    Args:
        source: pairs.
        limit: at most so many pairs, evenly spread over the source; 0 for all.
        process, processes: every so many-th pair, from which on.
        threads: that read. prefetch: pairs that are kept ready.
    Returns: an iterator; close() it to end its threads.
    Raises: ValueError while iterating if a file cannot be used.
    """
    mine = spread(len(source), limit)[process::processes]
    return read(mine, lambda index: (index, source[index]), threads, prefetch)


def spread(length: int, limit: int = 0) -> list[int]:
    """Numbers of at most `limit` of so many pairs, evenly spread; 0 for all."""
    count = min(length, limit or length)
    return [i * length // count for i in range(count)]


def read(
    numbers: Sequence[int],
    look: Callable[[int], Any],
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[Any]:
    """What `look` makes of each number, in order; close() it to end its threads."""
    steps = grain.MapDataset.source(numbers).map(lambda index: look(int(index)))
    return pipeline.iterate(steps, 0, threads, prefetch)
