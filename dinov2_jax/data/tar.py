"""Images in tar files, read at their positions: WebDataset shards and plain folders."""

import dataclasses
import functools
import os
import posixpath
import tarfile
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors, escaping
from dinov2_jax.data import (
    containers,
    fingerprint,
    folder,
    headers,
    listing,
    patterns,
    remote,
    samples,
    walk,
)
from dinov2_jax.data.faults import Faults, Refused
from dinov2_jax.data.record import Record
from dinov2_jax.data.walk import say

BLOCK = 4 << 20  # bytes that are read ahead of the headers of a remote file
CLASSES = 1 << 22  # numbers that a label may have: each is a name in memory


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

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads: the shards, and where each image lies in them."""
        yield "tar", self.classes
        yield from map(fingerprint.File, self._shards)
        yield from (self._files.blob, self._files.labels, self._files.extra)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


@dataclasses.dataclass
class Scan:
    """What is known of tar files when their headers are read.

    Fields: `stops` of the rows of each shard; `labelled` whether one has a .cls file;
    `ignored` members; `faults` of shards that are read; `refused` those that are not.
    """

    shards: list[str]
    stops: list[int] = dataclasses.field(default_factory=list)
    labelled: bool = False
    ignored: walk.Ignored = dataclasses.field(default_factory=walk.Ignored)
    faults: Faults = dataclasses.field(default_factory=Faults)
    refused: list[str] = dataclasses.field(default_factory=list)


def _listed(shards: list[str], places: list[str], kept) -> listing.Listing:
    """The images of tar files. Raises: ValueError if one cannot be read."""
    scan = Scan(shards)
    members = listing.build(
        _members(scan), len(samples.COLUMNS), [], None, walk.Ignored()
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


def _images(scan: Scan, members: listing.Listing) -> Iterator[listing.Entry]:
    """The images among the members, shard by shard."""
    start, beside = 0, set()
    for number, (path, stop) in enumerate(zip(scan.shards, scan.stops, strict=True)):
        shard = samples.Shard(members, start, stop, path)
        locate = functools.partial(_places, path, number)
        yield from samples.entries(
            shard, scan.labelled, locate, beside, scan.ignored, scan.faults
        )
        start = stop


def _members(scan: Scan) -> Iterator[listing.Entry]:
    """Images, labels and links of tar files, with `samples.COLUMNS`."""
    rows = 0
    for number, shard in enumerate(scan.shards):
        with _stream(shard) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            wrong = _wrong(stream.read(512))
            if wrong:
                scan.refused.append(f"{shard} {wrong}")
                continue
            stream.seek(0)
            members, member, end, images = headers.Headers(shard, stream), None, 0, 0
            while (after := members.next()) is not None:
                members.members.clear()  # or it keeps them all
                member = after
                stored = members.offset - member.offset_data  # with its padding
                end = member.offset_data + min(member.size, stored)
                if end > size:
                    break
                row = _row(members, member, number, scan)
                if row is not None:
                    kind = row[1][0]
                    images += kind in (samples.IMAGE, samples.IMAGE + samples.LINK)
                    rows += 1
                    yield row
        scan.stops.append(rows)
        wrong = _cut(members, member, end, size)
        if wrong:
            scan.refused.append(f"{shard} {wrong}")
        else:
            _judge(shard, members, images, scan.faults)


def _wrong(head: bytes) -> str | None:
    """Why a file that begins so is refused; None if it may be a tar file."""
    what = containers.described(head)
    if what in (None, "a tar file", "zeros"):
        return None
    more = "; unpack it" if what.endswith("compressed") else ""
    return f"cannot be read as an uncompressed tar file: it is {what}{more}"


def _cut(members: headers.Headers, last, end: int, size: int) -> str | None:
    """Why a file is refused when its headers are read; None if it is not.

    Args:
        members, last: the headers, and the last one.
        end: of the last member's data, bytes.
        size: of the file, bytes.
    """
    if end > size:
        return f"is cut short: {last.name} ends at byte {end}, but the file has {size}"
    if last is None and members.damage:
        return "cannot be read as an uncompressed tar file: it has no valid header"
    whole = size // headers.BLOCK * headers.BLOCK
    if whole < size and (whole, None) in members.damage:
        return "is cut short within a header"
    return None


def _judge(shard: str, members: headers.Headers, images: int, faults: Faults) -> None:
    """Keep what is wrong with a file as a whole."""
    for start, stop in members.damage:
        rest = "to its end" if stop is None else f"to byte {stop}, where one is valid"
        faults.add(
            f"{shard} has no valid header at byte {start}; what stands from there "
            f"{rest} is left out"
        )
    if not (members.ended or members.damage):
        faults.add(f"{shard} has no mark of its end; it may be cut short")
    if not images:
        faults.add(f"{shard} has no image")


def _row(
    members: headers.Headers,
    member: tarfile.TarInfo,
    shard: int,
    scan: Scan,
) -> listing.Entry | None:
    """What `_members` tells of a member; None if it is nothing to read."""
    link = member.islnk() or member.issym()
    if not (link or member.isreg()):
        return None
    name, scope = _name(member.name), b"%d %d " % (shard, members.archive)
    if name.lower().endswith(b".cls") and not walk.is_service(name):
        kind, scan.labelled = samples.LABEL, True
    elif folder.is_image(name, scan.ignored):
        kind = samples.IMAGE
    elif link:
        kind = samples.OTHER_LINK
    else:
        return None
    own, stem, key = samples.names(name, scope)
    if link:
        kind = kind if kind == samples.OTHER_LINK else kind + samples.LINK
        start, size = samples.names(_target(member, name), scope)[0], 0
    elif kind == samples.LABEL:
        start, size = member.offset_data, _label(members, member)
    elif member.issparse():
        scan.faults.add(
            f"{members.name}: {member.name} is stored with holes; pack it anew"
        )
        return None
    else:
        start, size = member.offset_data, member.size
    return name, (kind, shard, start, size, own, stem, key), -1


def _name(text: str) -> bytes:
    """The name of a member without ./ and doubled slashes."""
    name = text.encode("utf-8", "surrogateescape")
    if name.startswith((b".", b"/")) or b"//" in name or b"/." in name:
        name = posixpath.normpath(name).lstrip(b"/")
    return name


def _target(member: tarfile.TarInfo, name: bytes) -> bytes:
    """The name that a link leads to; of a symbolic one from where it stands."""
    target = member.linkname.encode("utf-8", "surrogateescape")
    if member.issym() and not target.startswith(b"/"):
        target = posixpath.join(posixpath.dirname(name), target)
    return posixpath.normpath(target).lstrip(b"/")


def _places(shard: str, number: int, hashes: set[int]) -> dict[int, tuple[int, int]]:
    """Where the members of some names stand, whatever they are called."""
    found = {}
    with _stream(shard) as stream:
        members = headers.Headers(shard, stream)
        while (member := members.next()) is not None:
            members.members.clear()
            scope = b"%d %d " % (number, members.archive)
            own = samples.names(_name(member.name), scope)[0]
            if member.isreg() and not member.issparse() and own in hashes:
                found[own] = member.offset_data, member.size
    return found


def _label(members: headers.Headers, member: tarfile.TarInfo) -> int:
    """The class in a .cls file. Raises: ValueError if it is no number."""
    members.fileobj.seek(member.offset_data)
    text = members.fileobj.read(min(member.size, 32)).decode(errors="replace").strip()
    if not text.isdecimal() or int(text) >= CLASSES:
        raise errors.InputError(
            f"{member.name} in {members.name} holds {text!r}; a .cls file holds the "
            f"number of a class, 0 to {CLASSES - 1}."
        )
    return int(text)


def _stream(shard: str):
    """A file to read headers from."""
    if not remote.is_remote(shard):
        return open(shard, "rb")
    system, path = remote.opened(shard)
    return system.open(path, "rb", block_size=BLOCK)
