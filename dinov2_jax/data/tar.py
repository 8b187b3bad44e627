"""Images in tar files, read at their positions: WebDataset shards and plain folders."""

import functools
import os
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors, escaping
from dinov2_jax.data import (
    fingerprint,
    folder,
    listing,
    patterns,
    remote,
    samples,
    scanning,
    walk,
)
from dinov2_jax.data.faults import Faults, Refused
from dinov2_jax.data.record import Record
from dinov2_jax.data.walk import say


class Tar:
    """All images in uncompressed tar files, here or behind a URL.

    The label is the number in the .cls file of the same name or key, as WebDataset
    writes it, else the first folder inside. The headers are read once and the positions
    kept in cache_dir, as for Folder. Links lead to what they lead to inside of the file.
    What is damaged, repeated or leads nowhere is left out and told in `faults`.
    """

    def __init__(self, pattern: str, cache_dir: str | os.PathLike | None = None):
        """
        Args:
            pattern: path or URL of tar files, see `patterns.find`.
            cache_dir: where the positions are kept, or None.
        Raises: ValueError if no file matches, one is cut short or no tar file, or none
            has images.
        """
        spec = f"tar:{pattern}"
        self._shards, notes = patterns.find("tar", pattern)
        self._open: dict[int, int] = {}  # file descriptors, one set a process
        places = [
            x if remote.is_remote(x) else os.path.abspath(x) for x in self._shards
        ]
        kept = listing.cache_path(cache_dir, "tar", "2", *places)
        found = listing.load(kept)
        if found is None:
            found = _listed(self._shards, places, kept)
        folder.report(spec, found)
        self._files, self.classes = found, found.classes
        without = np.count_nonzero(found.labels < 0) if found.classes else 0
        if without:
            say(f"{spec}: {without} of {len(found)} images have no label")
        faults = Faults([*notes, *found.notes])
        faults.tell(spec)
        self.faults = tuple(faults.lines)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        shard, start, size = self._files.extra[index].tolist()
        path = self._shards[shard]
        if remote.is_remote(path):
            data = remote.read(path, start, size)
        else:
            data = os.pread(self._descriptor(shard), size, start)
        if len(data) < size:
            raise errors.FileError(f"{path} ends within {self.name(index)}.")
        return Record(data, int(self._files.labels[index]))

    def _descriptor(self, shard: int) -> int:
        """The open file of a shard; of two threads at once one closes its own."""
        found = self._open.get(shard)
        if found is None:
            mine = os.open(self._shards[shard], os.O_RDONLY)
            found = self._open.setdefault(shard, mine)
            if found != mine:
                os.close(mine)
        return found

    def name(self, index: int) -> str:
        shard = self._shards[self._files.extra[index, 0]]
        return f"{escaping.escaped(shard)}/{escaping.escaped(self._files.path(index))}"

    @property
    def labels(self) -> np.ndarray:
        """[n] int32 of all records, -1 where there is none."""
        return self._files.labels

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return tuple(self._shards)

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads: the shards, and where each image lies in them."""
        yield "tar", self.classes
        yield from map(fingerprint.File, self._shards)
        yield from (self._files.blob, self._files.labels, self._files.extra)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


def _listed(shards: list[str], places: list[str], kept) -> listing.Listing:
    """The images of tar files. Raises: ValueError if one cannot be read."""
    scan = scanning.Scan(shards)
    members = listing.build(
        scanning.members(scan), len(samples.COLUMNS), [], None, walk.Ignored()
    )
    try:
        if scan.refused:
            count = f"{len(scan.refused)} of {len(shards)} shards"
            raise Refused(scan.refused, f"copy or pack {count} again")
        watched = [os.fsencode(place) for place in places]
        images = _images(scan, members)
        found = listing.build(images, 3, watched, kept, scan.ignored, scan.faults.lines)
    finally:
        members.file.unlink()
    return found


def _images(scan: scanning.Scan, members: listing.Listing) -> Iterator[listing.Entry]:
    """The images among the members, shard by shard."""
    start, beside = 0, set()
    for number, (path, stop) in enumerate(zip(scan.shards, scan.stops, strict=True)):
        shard = samples.Shard(members, start, stop, path)
        locate = functools.partial(scanning.places, path, number)
        yield from samples.entries(
            shard, scan.labelled, locate, beside, scan.ignored, scan.faults
        )
        start = stop
