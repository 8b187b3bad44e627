"""Images in tar files, read at their positions: WebDataset shards and plain folders."""

import os
import tarfile
from collections.abc import Iterator

from dinov2_jax import errors, escaping
from dinov2_jax.data import fingerprint, folder, listing, remote, walk
from dinov2_jax.data.record import Record

BLOCK = 4 << 20  # bytes that are read ahead of the headers of a remote file


class Tar:
    """All images in uncompressed tar files, here or behind a URL.

    The label is the number in the .cls file of the same name, as WebDataset writes
    it, else the first folder inside. The headers are read once and the positions kept
    in cache_dir, as for Folder.
    """

    def __init__(self, pattern: str, cache_dir: str | os.PathLike | None = None):
        """
        Args:
            pattern: path or URL of tar files, see `remote.find`.
            cache_dir: where the positions are kept, or None.
        Raises: ValueError if no file matches, one is compressed, or none has images.
        """
        self._shards = remote.find(pattern)
        self._open: dict[int, int] = {}  # file descriptors, one set a process
        if not self._shards:
            raise errors.InputError(f"tar:{pattern} matches no file.")
        places = [
            x if remote.is_remote(x) else os.path.abspath(x) for x in self._shards
        ]
        kept = listing.cache_path(cache_dir, "tar", *places)
        found = listing.load(kept)
        if found is None:
            other, watched = walk.Ignored(), [os.fsencode(x) for x in places]
            members = _members(self._shards, other)
            found = listing.build(members, 3, watched, kept, other)
        folder.report(f"tar:{pattern}", found)
        self._files, self.classes = found, found.classes

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


def _members(shards: list[str], other: walk.Ignored) -> Iterator[listing.Entry]:
    """Names, (shard, first byte, bytes) and labels of the images in tar files."""
    for number, shard in enumerate(shards):
        try:
            with (
                _stream(shard) as stream,
                tarfile.open(shard, "r:", stream) as members,
            ):
                yield from _images(members, number, other)
        except tarfile.TarError as error:
            raise errors.InputError(
                f"{shard} cannot be read as an uncompressed tar file ({error}); "
                "unpack compressed ones, their members have no fixed position."
            ) from error


def _images(members: tarfile.TarFile, shard: int, other: walk.Ignored):
    """Entries of one file; those of one key stand side by side."""
    key, images, label = None, [], None
    for member in members:
        members.members.clear()  # or it keeps them all
        if not member.isfile():
            continue
        name = os.fsencode(member.name.removeprefix("./"))
        head, _, base = name.rpartition(b"/")
        this = (head, base.partition(b".")[0])
        if this != key:
            yield from ((*image, label) for image in images)
            key, images, label = this, [], None
        if name.endswith(b".cls"):
            label = _label(members, member)
        elif folder.is_image(name, other):
            images.append((name, (shard, member.offset_data, member.size)))
    yield from ((*image, label) for image in images)


def _label(members: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    """The class in a .cls file. Raises: ValueError if it is no number."""
    text = members.extractfile(member).read(32).decode(errors="replace").strip()
    if not text.isdecimal() or int(text) >= 2**31:
        raise errors.InputError(
            f"{member.name} in {members.name} holds {text!r}; a .cls file holds the "
            "number of a class, 0 or more."
        )
    return int(text)


def _stream(shard: str):
    """A file to read headers from."""
    if not remote.is_remote(shard):
        return open(shard, "rb")
    system, path = remote.opened(shard)
    return system.open(path, "rb", block_size=BLOCK)
