"""Photographs with a value for every pixel: label maps or depth, from their files."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data import decode, dense_tfds, fingerprint, layouts
from dinov2_jax.data.pair import Pair, require_one_size
from dinov2_jax.escaping import escaped

IGNORED = -1  # a label that counts nowhere
LABELLED = {
    "pairs": layouts.folders,
    "ade20k": layouts.ade20k,
    "voc": layouts.voc,
    "cityscapes": layouts.cityscapes,
    "tfds": dense_tfds.opened,
}
MEASURED = {"pairs": layouts.folders, "nyud": layouts.nyud, "tfds": dense_tfds.opened}
"""Kind of a spec -> where its files or entries are, of label maps and of depth maps."""


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
            raise errors.InputError(
                f"{escaped(path)} or {escaped(target)} cannot be read: {error}; mend or "
                "remove both."
            ) from error
        require_one_size(image, found, escaped(path), escaped(target))
        return Pair(image, found)

    def name(self, index: int) -> str:
        return escaped(self.images[index])

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "pairs", self.classes
        for files in zip(self.images, self.targets):
            yield from map(fingerprint.File, files)


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
    return labels_of(ids, path, classes, first, ignore)


def labels_of(
    ids: np.ndarray, path: str, classes: int, first: int = 0, ignore: int = 255
) -> np.ndarray:
    """The label map of [H W] ids; `path` names it, the rest is as `read_labels`."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise errors.InputError(
            f"{path} holds {ids.dtype}; a label map holds integers."
        )
    ids = ids.astype(np.int32)
    out = (ids == ignore) | (ids < first)
    wrong = np.unique(ids[(~out & (ids >= first + classes)) | (ids < 0)])
    if len(wrong):
        some = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise errors.InputError(
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
    return depth_of(found, path, scale)


def depth_of(found: np.ndarray, path: str, scale: float) -> np.ndarray:
    """[H W] float32 metres of values of which `scale` make a metre, 0 where unknown."""
    if found.dtype.kind not in "uif":
        raise errors.InputError(
            f"{path} holds {found.dtype}; a depth map holds numbers."
        )
    depth = found.astype(np.float32) / np.float32(scale)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _pixels(path: str, modes: tuple[str, ...], what: str) -> np.ndarray:
    """[H W] values of a .npy file or of a picture in one of Pillow's modes."""
    try:
        found, mode = _load(path)
    # Readers raise nearly every kind of error on damaged files.
    except Exception as error:
        raise errors.InputError(f"{path} cannot be read as {what}: {error}") from error
    if mode is None:
        if found.ndim != 2 or found.dtype.kind not in "biuf":
            raise errors.InputError(
                f"{path} holds {found.shape} {found.dtype}; {what} is [H W] numbers."
            )
        return found.astype(np.uint8) if found.dtype == bool else found
    if mode not in modes:
        raise errors.InputError(
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
) -> Pairs | dense_tfds.TfdsPairs:
    """Photographs with label maps.

    Args:
        spec: pairs:IMAGES,LABELS (two folders; partners have the same path but for the
            extension; LABELS/classes.txt may name the classes, one a line),
            ade20k:ROOT:training|validation, voc:ROOT:train|val|trainval,
            cityscapes:ROOT:train|val, or a TFDS set as for `open_source`.
        classes, first, ignore: of `read_labels`, for pairs: and tfds:; the layouts know
            theirs. None takes the names of classes.txt, or those that TFDS knows.
        max_pixels: largest photograph that is decoded.
    Returns: the pairs, in the order of their names.
    Raises: ValueError if files are missing, with how many and which.
    """
    kind, rest = _kind(spec, LABELLED)
    if kind == "tfds":
        *found, names = dense_tfds.opened(spec, dense_tfds.LABELS)
        names = _named(spec, names, classes, first)
    elif kind == "pairs":
        found, names = layouts.folders(spec, rest)
        names = _named(spec, names, classes, first)
    else:
        found, names = LABELLED[kind](spec, rest)
        first, ignore = int(kind == "ade20k"), 255
    told = {"classes": len(names), "first": first, "ignore": ignore}
    if kind == "tfds":
        read = functools.partial(labels_of, **told)
        return dense_tfds.TfdsPairs(spec, *found, read, names, max_pixels)
    read = functools.partial(read_labels, **told)
    return Pairs(*found, read, names, max_pixels)


def _named(
    spec: str, names: tuple[str, ...], classes: int | None, first: int
) -> tuple[str, ...]:
    """Names of all classes, their ids where the set does not tell."""
    if not names and not classes:
        raise errors.InputError(
            f"{spec} does not tell its classes; set classes, or, for pairs:, write "
            "their names into classes.txt in the folder of the label maps, one a line."
        )
    if names and classes not in (None, len(names)):
        raise errors.InputError(f"{spec} names {len(names)} classes, but {classes=}.")
    return names or tuple(str(first + i) for i in range(classes))


def open_depth(
    spec: str, *, scale: float = 1000.0, max_pixels: int = decode.MAX_PIXELS
) -> Pairs | dense_tfds.TfdsPairs:
    """Photographs with depth maps.

    Args:
        spec: pairs:IMAGES,DEPTHS (two folders; partners have the same path but for the
            extension), or nyud:ROOT:LIST, where LIST is train, test or a text file in
            ROOT with an image and a depth map a line (nyu_train.txt for train); or a
            TFDS set as for `open_source`.
        scale: of `read_depth`; depth of floating point is in metres.
        max_pixels: largest photograph that is decoded.
    Returns: the pairs.
    Raises: ValueError if files are missing, with how many and which.
    """
    kind, rest = _kind(spec, MEASURED)
    if kind == "tfds":
        *found, _ = dense_tfds.opened(spec, dense_tfds.DEPTHS)
        read = functools.partial(_metres, scale=scale)
        return dense_tfds.TfdsPairs(spec, *found, read, (), max_pixels)
    found, _ = MEASURED[kind](spec, rest)
    return Pairs(*found, functools.partial(read_depth, scale=scale), (), max_pixels)


def _metres(found: np.ndarray, path: str, scale: float) -> np.ndarray:
    """`depth_of` of an array whose floating point numbers are metres already."""
    return depth_of(found, path, 1.0 if found.dtype.kind == "f" else scale)


def _kind(spec: str, known: Iterable[str]) -> tuple[str, str]:
    """The kind of a spec, and what follows it."""
    kind, _, rest = spec.partition(":")
    if kind not in known or not rest:
        raise errors.InputError(
            f"{spec!r} names no pairs of images and maps; known are "
            f"{', '.join(f'{k}:' for k in known)}, each with its place behind it."
        )
    return kind, rest
