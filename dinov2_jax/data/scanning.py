"""What the headers of tar files tell: images, labels, links, and what is wrong."""

import dataclasses
import os
import posixpath
import tarfile
from collections.abc import Iterator

from dinov2_jax import errors, escaping
from dinov2_jax.data import containers, folder, headers, listing, remote, samples, walk
from dinov2_jax.data.faults import Faults
from dinov2_jax.data.record import CLASSES

BLOCK = 4 << 20  # bytes that are read ahead of the headers of a remote file
LINKS = "links to other files"


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


def members(scan: Scan) -> Iterator[listing.Entry]:
    """Images, labels and links of tar files, with `samples.COLUMNS`."""
    rows = 0
    for number, shard in enumerate(scan.shards):
        try:
            for row in _rows(shard, number, scan):
                rows += 1
                yield row
        except OSError as error:
            scan.refused.append(f"{shard} cannot be read: {error.strerror or error}")
        scan.stops.append(rows)


def _rows(shard: str, number: int, scan: Scan) -> Iterator[listing.Entry]:
    """`members` of one file. Raises: OSError if it cannot be read."""
    with _stream(shard) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        wrong = _wrong(stream.read(headers.BLOCK))
        if wrong:
            scan.refused.append(f"{shard} {wrong}")
            return
        stream.seek(0)
        read, last, end, images = headers.Headers(shard, stream), None, 0, 0
        while end <= size and (member := read.next()) is not None:
            read.members.clear()  # or it keeps them all
            stored = read.offset - member.offset_data  # with its padding
            last, end = member, member.offset_data + min(member.size, stored)
            row = _row(read, member, number, scan) if end <= size else None
            if row is not None:
                images += row[1][0] in (samples.IMAGE, samples.IMAGE + samples.LINK)
                yield row
    wrong = _cut(read, last, end, size)
    if wrong:
        scan.refused.append(f"{shard} {wrong}")
    else:
        _judge(shard, read, images, scan.faults)


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
        name = escaping.escaped(last.name)
        return f"is cut short: {name} ends at byte {end}, but the file has {size}"
    if last is None and members.damage:
        return "cannot be read as an uncompressed tar file: it has no valid header"
    whole = size // headers.BLOCK * headers.BLOCK
    if whole < size and (whole, None) in members.damage:
        return "is cut short within a header"
    return None


def _judge(shard: str, members: headers.Headers, images: int, faults: Faults) -> None:
    """Keep what is wrong with a file as a whole."""
    for start, stop in members.damage:
        rest = "the end" if stop is None else f"byte {stop}"
        faults.add(
            f"{shard} has no valid header at byte {start}; all from there to {rest} is "
            "left out"
        )
    if not (members.ended or members.damage):
        faults.add(f"{shard} has no end-of-archive marker; it may be cut short")
    if not images:
        faults.add(f"{shard} has no image")


def _row(
    members: headers.Headers,
    member: tarfile.TarInfo,
    shard: int,
    scan: Scan,
) -> listing.Entry | None:
    """What `members` tells of a member; None if it is nothing to read."""
    link = member.islnk() or member.issym()
    name, scope = _name(member.name), b"%d %d " % (shard, members.archive)
    if not (link or member.isreg()):
        if not member.isdir():
            scan.ignored.entry(walk.SPECIAL, name)
        return None
    if name.lower().endswith(b".cls") and not walk.is_service(name):
        kind, scan.labelled = samples.LABEL, True
    elif folder.is_image(name, walk.Ignored() if link else scan.ignored):
        kind = samples.IMAGE
    elif link:
        kind = samples.OTHER_LINK
        scan.ignored.entry(LINKS, name)
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
            f"{members.name}: {escaping.escaped(member.name)} is stored as a sparse file; pack it without holes"
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


def places(shard: str, number: int, hashes: set[int]) -> dict[int, tuple[int, int]]:
    """Where the members of some names stand, whatever they are called.

    Args:
        shard: the file.
        number: of the file among others.
        hashes: of names, as `samples.names` gives them.
    Returns: {hash: (first byte, bytes)}.
    """
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
            f"{escaping.escaped(member.name)} in {members.name} holds {text!r}; a .cls file holds the "
            f"number of a class, 0 to {CLASSES - 1}."
        )
    return int(text)


def _stream(shard: str):
    """A file to read headers from."""
    if not remote.is_remote(shard):
        return open(shard, "rb")
    system, path = remote.opened(shard)
    return system.open(path, "rb", block_size=BLOCK)
