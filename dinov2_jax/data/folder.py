"""Images in a folder, without a walk at every start."""

import collections
import logging
import os
from collections.abc import Iterator

from dinov2_jax import errors
from dinov2_jax.data import fingerprint, listing
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
            raise errors.InputError(f"folder:{root} is not a folder ({self.root}).")
        kept = listing.cache_path(cache_dir, "folder", self.root)
        found = listing.load(kept)
        if found is None:
            other, walked = collections.Counter(), []
            images = _images(os.fsencode(self.root), other, walked)
            found = listing.build(images, 0, walked, kept)
            report(f"folder:{root}", found, other)
        self._files, self.classes = found, found.classes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        path = os.path.join(os.fsencode(self.root), self._files.path(index))
        with open(path, "rb") as file:
            return Record(file.read(), int(self._files.labels[index]))

    def name(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self._files.path(index)))

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads; a folder that was moved whole stays the same."""
        yield "folder", self.classes
        root = os.fsencode(self.root)
        for index in range(len(self)):
            name = self._files.path(index)
            yield fingerprint.File(os.path.join(root, name), name)


def _images(
    root: bytes, other: collections.Counter, walked: list[bytes]
) -> Iterator[listing.Entry]:
    """The images below a folder, sorted.

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
            elif is_image(name, other):
                yield prefix + name, (), None

    yield from walk(root, b"")


def is_image(name: bytes, other: collections.Counter) -> bool:
    """Whether a file name says image; counts the extension of those that do not."""
    base = os.path.basename(name)
    extension = os.path.splitext(base)[1].lower()
    # A leading dot: what macOS writes beside each file, with the same extension.
    if extension in EXTENSIONS and not base.startswith(b"."):
        return True
    other[os.fsdecode(extension)] += 1
    return False


def report(spec: str, found: listing.Listing, other: collections.Counter) -> None:
    """Logs what was found and what was left out; raises ValueError if nothing."""
    ignored = ", ".join(f"{n} {x or 'without extension'}" for x, n in other.items())
    if not len(found):
        known = " ".join(sorted(x.decode() for x in EXTENSIONS))
        raise errors.InputError(
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
