"""Images in a folder, and images in tar files, without a walk at every start."""

import collections
import glob
import logging
import os
import tarfile
from collections.abc import Iterator

from dinov2_jax.data import listing
from dinov2_jax.data.record import Record

EXTENSIONS = frozenset(b".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm".split())


class Folder:
    """All images below a folder; the first sub-folder names the class.

    With a cache_dir the list of files is kept there, and made anew when a folder
    anywhere below has changed.
    """

    def __init__(self, root: str, cache_dir: str | os.PathLike | None = None):
        """
        Args:
            root: the folder; links are followed.
            cache_dir: where the list of files is kept, or None.
        Raises: ValueError if root is missing or holds no image.
        """
        self.root = os.path.abspath(os.path.expanduser(root))
        if not os.path.isdir(self.root):
            raise ValueError(f"folder:{root} is not a folder ({self.root}).")
        kept = listing.cache_path(cache_dir, "folder", self.root)
        found = listing.load(kept)
        if found is None:
            other, walked = collections.Counter(), []
            images = _images(os.fsencode(self.root), other, walked)
            found = listing.build(images, 0)
            _report(f"folder:{root}", found, other)
            if kept is not None:
                listing.save(kept, found, walked)
        self._files, self.classes = found, found.classes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        path = os.path.join(os.fsencode(self.root), self._files.path(index))
        with open(path, "rb") as file:
            return Record(file.read(), int(self._files.labels[index]))

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self._files.path(index)))


class Tar:
    """All images in uncompressed tar files; the first folder inside is the class.

    The headers are read once and the positions kept in cache_dir, as for Folder.
    """

    def __init__(self, pattern: str, cache_dir: str | os.PathLike | None = None):
        """
        Args:
            pattern: path of one tar file, or a pattern with * and ? for several.
            cache_dir: where the positions are kept, or None.
        Raises: ValueError if no file matches, one is compressed, or none has images.
        """
        self._shards = sorted(glob.glob(os.path.expanduser(pattern)))
        self._open: dict[int, int] = {}  # file descriptors, one set a process
        if not self._shards:
            raise ValueError(f"tar:{pattern} matches no file.")
        kept = listing.cache_path(cache_dir, "tar", *map(os.path.abspath, self._shards))
        found = listing.load(kept)
        if found is None:
            other = collections.Counter()
            found = listing.build(_members(self._shards, other), 3)
            _report(f"tar:{pattern}", found, other)
            if kept is not None:
                listing.save(kept, found, map(os.fsencode, self._shards))
        self._files, self.classes = found, found.classes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        shard, start, size = self._files.extra[index].tolist()
        if shard not in self._open:
            self._open[shard] = os.open(self._shards[shard], os.O_RDONLY)
        data = os.pread(self._open[shard], size, start)
        return Record(data, int(self._files.labels[index]))

    def name(self, index: int) -> str:
        shard = self._shards[self._files.extra[index, 0]]
        return f"{shard}/{os.fsdecode(self._files.path(index))}"

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


def _images(
    root: bytes, other: collections.Counter, walked: list[bytes]
) -> Iterator[tuple[bytes, tuple]]:
    """Names of the images below a folder, sorted.

    `other` counts the files that are none, `walked` takes every folder.
    """
    seen = set()  # folders by device and number: a link may point to its parent

    def walk(folder: bytes, prefix: bytes):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        walked.append(folder)
        with os.scandir(folder) as entries:
            entries = sorted((entry.name, entry.is_dir()) for entry in entries)
        for name, is_folder in entries:
            if is_folder:
                yield from walk(os.path.join(folder, name), prefix + name + b"/")
            elif _is_image(name, other):
                yield prefix + name, ()

    yield from walk(root, b"")


def _members(shards: list[str], other: collections.Counter):
    """(name, (shard, first byte, bytes)) of the images in tar files."""
    for number, shard in enumerate(shards):
        try:
            with tarfile.open(shard, "r:") as members:
                for member in members:
                    name = os.fsencode(member.name.removeprefix("./"))
                    if member.isfile() and _is_image(name, other):
                        yield name, (number, member.offset_data, member.size)
        except tarfile.TarError as error:
            raise ValueError(
                f"{shard} cannot be read as an uncompressed tar file ({error}); "
                "unpack compressed ones, their members have no fixed position."
            ) from error


def _is_image(name: bytes, other: collections.Counter) -> bool:
    """Whether a file name says image; counts the extension of those that do not."""
    base = os.path.basename(name)
    extension = os.path.splitext(base)[1].lower()
    # A leading dot: what macOS writes beside each file, with the same extension.
    if extension in EXTENSIONS and not base.startswith(b"."):
        return True
    other[os.fsdecode(extension)] += 1
    return False


def _report(spec: str, found: listing.Listing, other: collections.Counter) -> None:
    """Logs what was found and what was left out; raises ValueError if nothing."""
    ignored = ", ".join(f"{n} {x or 'without extension'}" for x, n in other.items())
    if not len(found):
        known = " ".join(sorted(x.decode() for x in EXTENSIONS))
        raise ValueError(
            f"{spec} holds no image (ignored: {ignored or 'nothing'}); names must end "
            f"in one of {known}."
        )
    logging.getLogger(__name__).info(
        "%s: %d images in %d classes; %d other files ignored%s",
        spec,
        len(found),
        len(found.classes),
        other.total(),
        f" ({ignored})" if ignored else "",
    )
