"""Photographs with a value for every pixel: label maps or depth, from their files."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from dinov2_jax.data import decode, layouts

IGNORED = -1  # a label that counts nowhere
LABELLED = {
    "pairs": layouts.folders,
    "ade20k": layouts.ade20k,
    "voc": layouts.voc,
    "cityscapes": layouts.cityscapes,
}
MEASURED = {"pairs": layouts.folders, "nyud": layouts.nyud}
"""Kind of a spec -> where its files are, with label maps and with depth maps."""


class Pair(NamedTuple):
    """One photograph and what is known of its pixels."""

    image: np.ndarray  # [H W 3] uint8 RGB
    target: np.ndarray  # [H W] int32 labels, -1 ignored; or float32 metres, 0 unknown


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Image files with a target file each, by number; picklable."""

    images: tuple[str, ...]
    targets: tuple[str, ...]
    read: Callable[[str], np.ndarray]
    classes: tuple[str, ...] = ()
    max_pixels: int = decode.MAX_PIXELS

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        """Raises ValueError, naming the file, if one cannot be used."""
        path, target = self.images[index], self.targets[index]
        try:
            data = pathlib.Path(path).read_bytes()
            image = decode.decode(data, max_pixels=self.max_pixels)
            found = self.read(target)
        except (decode.DecodeError, OSError) as error:
            raise ValueError(
                f"{path} or {target} cannot be read: {error}; mend or remove both."
            ) from error
        if found.shape != image.shape[:2]:
            raise ValueError(
                f"{path} has {_size(image)} pixels, but {target} has {_size(found)}; "
                "they must be equal."
            )
        return Pair(image, found)

    def name(self, index: int) -> str:
        return self.images[index]


def _size(array: np.ndarray) -> str:
    """Height x width."""
    return "x".join(map(str, array.shape[:2]))


def read_labels(path: str, classes: int, first: int = 0, ignore: int = 255):
    """The label map of a file.

    Args:
        path: a PNG of ids (gray of 1, 8 or 16 bits) or with a palette, whose indices
            are the ids; or a .npy of integers.
        classes: number of classes.
        first: id of class 0; smaller ids are ignored (ADE20k: 1).
        ignore: id that is ignored, too.
    Returns: [H W] int32, 0..classes-1, and -1 where ignored.
    Raises: ValueError if the file is no label map or holds other ids.
    """
    ids = _pixels(path, ("1", "L", "P", "I", "I;16"), "a label map")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{path} holds {ids.dtype}; a label map holds integers.")
    ids = ids.astype(np.int32)
    out = (ids == ignore) | (ids < first)
    wrong = np.unique(ids[(~out & (ids >= first + classes)) | (ids < 0)])
    if len(wrong):
        some = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise ValueError(
            f"{path} holds the ids {some}; with {classes} classes they run from "
            f"{first} to {first + classes - 1}, or are ignored ({ignore}). Set classes, "
            "first_id or ignore_id."
        )
    return np.where(out, np.int32(IGNORED), ids - np.int32(first))


def read_depth(path: str, scale: float = 1000.0) -> np.ndarray:
    """The depth map of a file.

    Args:
        path: a PNG of 16 bits, or a .npy of metres; 0, negative or not finite where
            unknown.
        scale: values of the PNG that make a metre (NYUd 1000, KITTI 256).
    Returns: [H W] float32 metres, 0 where unknown.
    Raises: ValueError if the file is no depth map.
    """
    found = _pixels(path, ("I", "I;16", "I;16B"), "a depth map of 16 bits")
    if path.endswith(".npy"):
        scale = 1.0
    depth = found.astype(np.float32) / np.float32(scale)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _pixels(path: str, modes: tuple[str, ...], what: str) -> np.ndarray:
    """[H W] values of a .npy file or of a picture in one of Pillow's modes."""
    try:
        found, mode = _load(path)
    # Readers raise nearly every kind of error on damaged files.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as {what}: {error}") from error
    if mode is None:
        if found.ndim != 2 or found.dtype.kind not in "biuf":
            raise ValueError(
                f"{path} holds {found.shape} {found.dtype}; {what} is [H W] numbers."
            )
        return found.astype(np.uint8) if found.dtype == bool else found
    if mode not in modes:
        raise ValueError(
            f"{path} is a PNG of mode {mode}; {what} is one of {', '.join(modes)}: one "
            "channel."
        )
    return found.astype(np.int64)


def _load(path: str) -> tuple[np.ndarray, str | None]:
    """The array in a .npy file, or that of a PNG with Pillow's mode of it."""
    if path.endswith(".npy"):
        return np.load(path, allow_pickle=False), None
    with Image.open(path, formats=("PNG",)) as picture:
        return np.asarray(picture), picture.mode


def open_labels(
    spec: str,
    *,
    classes: int | None = None,
    first: int = 0,
    ignore: int = 255,
    max_pixels: int = decode.MAX_PIXELS,
) -> Pairs:
    """Photographs with label maps.

    Args:
        spec: pairs:IMAGES,LABELS (two folders; partners have the same path but for the
            extension; LABELS/classes.txt may name the classes, one a line),
            ade20k:ROOT:training|validation, voc:ROOT:train|val|trainval,
            cityscapes:ROOT:train|val.
        classes, first, ignore: of `read_labels`, for pairs:; the layouts know theirs.
            None takes the number of lines of classes.txt.
        max_pixels: largest photograph that is decoded.
    Returns: the pairs, in the order of their names.
    Raises: ValueError if files are missing, with how many and which.
    """
    kind, rest = _kind(spec, LABELLED)
    if kind == "pairs":
        found, names = layouts.folders(spec, rest)
        if not names and not classes:
            raise ValueError(
                f"{spec} does not tell its classes; set classes, or write their names "
                "into classes.txt in the folder of the label maps, one a line."
            )
        if names and classes not in (None, len(names)):
            raise ValueError(
                f"{spec} names {len(names)} classes in classes.txt, but {classes=}."
            )
        names = names or tuple(str(first + i) for i in range(classes))
    else:
        found, names = LABELLED[kind](spec, rest)
        first, ignore = int(kind == "ade20k"), 255
    read = functools.partial(
        read_labels, classes=len(names), first=first, ignore=ignore
    )
    return Pairs(*found, read, names, max_pixels)


def open_depth(
    spec: str, *, scale: float = 1000.0, max_pixels: int = decode.MAX_PIXELS
) -> Pairs:
    """Photographs with depth maps.

    Args:
        spec: pairs:IMAGES,DEPTHS (two folders; partners have the same path but for the
            extension), or nyud:ROOT:LIST, where LIST is train, test or a text file in
            ROOT with an image and a depth map a line (nyu_train.txt for train).
        scale: of `read_depth`.
        max_pixels: largest photograph that is decoded.
    Returns: the pairs.
    Raises: ValueError if files are missing, with how many and which.
    """
    kind, rest = _kind(spec, MEASURED)
    found, _ = MEASURED[kind](spec, rest)
    return Pairs(*found, functools.partial(read_depth, scale=scale), (), max_pixels)


def _kind(spec: str, known: Iterable[str]) -> tuple[str, str]:
    """The kind of a spec, and what follows it."""
    kind, _, rest = spec.partition(":")
    if kind not in known or not rest:
        raise ValueError(
            f"{spec!r} names no pairs of images and maps; known are "
            f"{', '.join(f'{k}:' for k in known)}, each with its place behind it."
        )
    return kind, rest
