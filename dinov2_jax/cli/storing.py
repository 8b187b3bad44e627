"""Rows of features on their way to disk: which are missing, and how far they are."""

import dataclasses
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from dinov2_jax import escaping, shards
from dinov2_jax.data.record import Record, Source
from dinov2_jax.train import progress

SAVE = 1.0  # seconds between two states of an unfinished shard
SHARE = 20  # and at least so many times as long as writing the last state took
LINE = 10.0  # seconds between two lines where there is no terminal
DRAW = 0.1  # seconds between two bars where there is one


@dataclasses.dataclass(frozen=True)
class Part:
    """Records first..last-1 of `count` that are spread evenly over a source."""

    source: Source
    count: int
    first: int
    last: int

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return self.last - self.first

    def number(self, index: int) -> int:
        """The record's number in the source."""
        return (self.first + index) * len(self.source) // self.count

    def __getitem__(self, index: int) -> Record:
        return self.source[self.number(index)]

    def name(self, index: int) -> str:
        return self.source.name(self.number(index))


class Stretch(NamedTuple):
    """Shards first..last-1, of which the first one has some rows already."""

    first: int
    last: int
    rows: int


def left(out: pathlib.Path, manifest: dict) -> tuple[progress.Progress, list[Stretch]]:
    """What is missing of this process's part of the shards, and a count of images."""
    records, size = manifest["records"], manifest["shard_size"]
    count, index, number = -(-records // size), jax.process_index(), jax.process_count()
    first, last = index * count // number, (index + 1) * count // number
    begun = shards.begun(out, manifest, first, last)
    stretches = []
    for a, b in shards.missing(out, first, last):
        # A shard with rows opens a stretch: what is missing of it comes next.
        starts = sorted({a, *(n for n in begun if a <= n < b)})
        for start, stop in zip(starts, [*starts[1:], b]):
            stretches.append(Stretch(start, stop, begun.get(start, 0)))
    total = min(last * size, records) - min(first * size, records)
    missing = sum(min(x.last * size, records) - x.first * size for x in stretches)
    done = total - missing + sum(x.rows for x in stretches)
    shown = progress.Progress(done, total, unit="image")
    there = f"{done} of {total} images are there already" if done else f"{total} images"
    shown.say(f"{escaping.shown(manifest['data'])}: {there}")
    return shown, stretches


def write(
    out: pathlib.Path,
    part: Part,
    made: Iterator,
    stretch: Stretch,
    manifest: dict,
) -> Iterator[tuple[int, int]]:
    """Write the shards of a part as its batches come.

    Args:
        out: the folder.
        part: the records, from the first one that is missing.
        made: (batch, {kind: rows}) in the order of the records.
        stretch: of `left`.
        manifest: of the folder.
    Returns: an iterator of (images written, images skipped), one a batch.
    """
    shard, number, have = None, stretch.first, stretch.rows
    position, skipped, saved, took = 0, 0, 0.0, 0.0
    for batch, found in made:
        count, start = min(len(batch.ids), len(part) - position), 0
        while start < count:
            if shard is None:
                begin = number * manifest["shard_size"]
                rows = min(manifest["shard_size"], manifest["records"] - begin)
                shard = shards.Writer(out, number, rows)
                if have:
                    shard.resume(manifest["what"])
                number, have = number + 1, 0
            # A shard that was begun with batches of another size ends within one.
            stop = min(count, start + shard.rows - shard.done)
            here = range(position + start, position + stop)
            ok = batch.ids[start:stop] >= 0
            about = {
                "record": np.array([part.number(i) for i in here], np.int64),
                "name": [part.name(i) for i in here],
                "label": np.where(ok, batch.labels[start:stop], -1).astype(np.int32),
                "ok": ok,
            }
            shard.add({kind: rows[start:] for kind, rows in found.items()}, about)
            skipped += int((~ok).sum())
            start = stop
            if shard.done == shard.rows:
                shard.close()
                shard = None
        now = time.monotonic()
        if shard is not None and now - saved >= max(SAVE, SHARE * took):
            shard.save()
            saved = time.monotonic()
            took = saved - now
        position += count
        yield position, skipped


class Shown:
    """Tells how many images are done: a bar on a terminal, lines from time to time."""

    def __init__(self, progress: progress.Progress):
        """`progress`: of `left`."""
        self.progress, self.done, self.next = progress, progress.start, 0.0

    def show(self, images: int, skipped: int) -> None:
        """So many images more than at the last `rest`."""
        now, done = time.monotonic(), self.done + images
        if now >= self.next or done == self.progress.stop:
            self.next = now + (DRAW if self.progress.live else LINE)
            self.progress.show(done, f"{skipped} skipped")

    def rest(self, images: int) -> None:
        """A stretch of so many images is done."""
        self.done += images
