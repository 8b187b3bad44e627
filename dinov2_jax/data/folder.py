"""Images in a folder, without a walk at every start."""

import os
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import decode, fingerprint, listing, walk
from dinov2_jax.data.record import Record
from dinov2_jax.escaping import escaped, shown


class Folder:
    """All images below a folder; the first sub-folder names the class.

    With a cache_dir the list of files is kept there, and made anew when a folder
    anywhere below has changed.
    """

    def __init__(self, root: str, cache_dir: str | os.PathLike | None = None):
        """
        Args:
            root: the folder; links are followed, see `walk`.
            cache_dir: where the list of files is kept, or None.
        Raises: ValueError if root is missing or holds no image.
        """
        self.root = os.path.abspath(os.path.expanduser(root))
        if not os.path.isdir(self.root):
            raise errors.InputError(f"folder:{root} is not a folder ({self.root}).")
        kept = listing.cache_path(cache_dir, "folder", self.root)
        found = listing.load(kept)
        if found is None:
            ignored, walked = walk.Ignored(), []
            images = _images(self.root, ignored, walked)
            found = listing.build(images, 0, walked, kept, ignored)
        report(f"folder:{root}", found)
        self._files, self.classes = found, found.classes

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        path = os.path.join(os.fsencode(self.root), self._files.path(index))
        with open(path, "rb") as file:
            return Record(file.read(), int(self._files.labels[index]))

    def name(self, index: int) -> str:
        path = os.path.join(os.fsencode(self.root), self._files.path(index))
        return escaped(path)

    @property
    def labels(self) -> np.ndarray:
        """[n] int32 of all records, -1 where there is none."""
        return self._files.labels

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads; a folder that was moved whole stays the same."""
        yield "folder", self.classes
        root = os.fsencode(self.root)
        for index in range(len(self)):
            name = self._files.path(index)
            yield fingerprint.File(os.path.join(root, name), name)


def _images(
    root: str, ignored: walk.Ignored, walked: list[bytes]
) -> Iterator[listing.Entry]:
    """The images below a folder, sorted; `walked` takes every folder."""
    for name in walk.Walk(root, ignored, walked).files():
        if is_image(name, ignored):
            yield name, (), None


def is_image(name: str | bytes, ignored: walk.Ignored) -> bool:
    """Whether the path of a file says image, and no service has left it; else counts it."""
    if walk.is_service(name):
        ignored.entry(walk.HIDDEN, name)
        return False
    extension = os.path.splitext(name)[1].lower()
    if os.fsdecode(extension) in decode.EXTENSIONS:
        return True
    ignored.file(name)
    return False


def report(spec: str, found: listing.Listing) -> None:
    """Tells what a list left out; raises ValueError if it holds nothing."""
    if not len(found) and not found.ignored:
        raise errors.InputError(
            f"{shown(spec)} holds no file; check the path, or copy the files again."
        )
    if not len(found):
        raise errors.InputError(
            f"{shown(spec)} holds no image (ignored: {found.ignored}); "
            f"names must end in one of {' '.join(sorted(decode.EXTENSIONS))}."
        )
    walk.tell(spec, len(found), found.ignored)
