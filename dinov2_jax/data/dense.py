"""Photographs with a value for every pixel: label maps or depth, from their files."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import decode, dense_tfds, fingerprint, kitti, layouts, mapfiles
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
MEASURED = {
    "pairs": layouts.folders,
    "nyud": layouts.nyud,
    "kitti": layouts.kitti,
    "tfds": dense_tfds.opened,
}
"""Kind of a spec -> where its files or entries are, of label maps and of depth maps."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Image files with a target file each, by number; picklable."""

    images: tuple[str, ...]
    targets: tuple[str, ...]
    read: Callable[[str], np.ndarray]
    classes: tuple[str, ...] = ()
    max_pixels: int = decode.MAX_PIXELS
    rules: decode.Rules = decode.RULES

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pair:
        """Raises ValueError, naming the file, if one cannot be used."""
        path, target = self.images[index], self.targets[index]
        try:
            data = pathlib.Path(path).read_bytes()
            image = decode.decode(data, max_pixels=self.max_pixels, rules=self.rules)
            found = self.read(target)
        except (decode.DecodeError, OSError) as error:
            raise errors.InputError(
                f"{escaped(path)} or {escaped(target)} cannot be read: {error}; mend or "
                "remove both."
            ) from error
        require_one_size(image.shape, found.shape, escaped(path), escaped(target))
        return Pair(image, found)

    def target(self, index: int) -> np.ndarray:
        """[H W] the map alone; of the photograph, the header is compared with it.

        Raises: ValueError, naming the file, if one cannot be used.
        """
        path, target = self.images[index], self.targets[index]
        try:
            data = pathlib.Path(path).read_bytes()
            size = decode.size_of(data, max_pixels=self.max_pixels)
            found = self.read(target)
        except (decode.DecodeError, OSError) as error:
            raise errors.InputError(
                f"{escaped(path)} or {escaped(target)} cannot be read: {error}; mend or "
                "remove both."
            ) from error
        require_one_size(size, found.shape, escaped(path), escaped(target))
        return found

    def name(self, index: int) -> str:
        return escaped(self.images[index])

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads; folders that were moved whole stay the same."""
        yield "pairs", self.classes
        both = self.images, self.targets
        roots = tuple(map(os.path.commonpath, both))
        for files in zip(*both):
            for path, root in zip(files, roots):
                yield fingerprint.File(path, path.removeprefix(root))


def read_labels(
    path: str,
    classes: int,
    first: int = 0,
    ignore: int = 255,
    ids: Mapping[int, int] | None = None,
) -> np.ndarray:
    """The label map of a file.

    Args:
        path: of `mapfiles.load`: grey or palette indices are the ids.
        classes: number of classes.
        first: id of class 0; smaller ids are ignored (ADE20k: 1).
        ignore: id that is ignored, too; -1 for none.
        ids: id -> class, or IGNORED, in the place of `first`; other ids but `ignore`
            are refused.
    Returns: [H W] int32, 0..classes-1, and -1 where ignored.
    Raises: ValueError if the file is no label map or holds other ids.
    """
    found = mapfiles.load(path, "a label map")
    return labels_of(found, path, classes, first, ignore, ids)


def labels_of(
    found: np.ndarray,
    path: str,
    classes: int,
    first: int = 0,
    ignore: int = 255,
    ids: Mapping[int, int] | None = None,
) -> np.ndarray:
    """The label map of [H W] ids; `path` names it, the rest is as `read_labels`."""
    path = escaped(path)
    if not np.issubdtype(found.dtype, np.integer):
        raise errors.InputError(
            f"{path} holds {found.dtype}; a label map holds integers."
        )
    found = found.astype(np.int64)
    if ids:
        keys = np.array(sorted(ids))
        place = np.searchsorted(keys, found).clip(max=len(keys) - 1)
        known = keys[place] == found
        labels = np.array([ids[key] for key in keys.tolist()])[place]
        labels, out = np.where(known, labels, IGNORED), ~known & (found == ignore)
        wrong, range_ = ~known & ~out, f"ids={_text(ids)} and {ignore} are known"
    else:
        out = (found == ignore) | (found < first)
        wrong = (~out & (found >= first + classes)) | ((found < 0) & (found != ignore))
        labels = np.where(out, IGNORED, found - first)
        range_ = (
            f"with {classes} classes they run from {first} to {first + classes - 1}, or "
            f"are ignored ({ignore})"
        )
    if wrong.any():
        odd = np.unique(found[wrong])
        some = ", ".join(map(str, odd[:5])) + (", ..." if len(odd) > 5 else "")
        raise errors.InputError(
            f"{path} holds the ids {some}; {range_}. Set classes, first_id or ignore_id, "
            f"or say which id is which class: {suggested_ids(found)}."
        )
    return labels.astype(np.int32)


def suggested_ids(found: np.ndarray) -> str:
    """A setting that makes classes of the ids of a map, in their order."""
    some = np.unique(found)[:4].tolist()
    return "ids=" + _text({one: i for i, one in enumerate(some)})


def _text(ids: Mapping[int, int]) -> str:
    """A mapping as it is set."""
    return ",".join(
        f"{one}:{'ignore' if label == IGNORED else label}" for one, label in ids.items()
    )


def read_depth(path: str, scale: float = 1000.0) -> np.ndarray:
    """The depth map of a file.

    Args:
        path: a PNG or TIFF of 16 bits or more, or floating point or a .npy of metres;
            0, negative or not finite where unknown.
        scale: integers of a picture that make a metre (NYUd 1000, KITTI 256).
    Returns: [H W] float32 metres, 0 where unknown.
    Raises: ValueError if the file is no depth map.
    """
    found = mapfiles.load(path, "a depth map")
    metres = path.lower().endswith(".npy") or found.dtype.kind == "f"
    if not metres and found.dtype.itemsize == 1:
        raise errors.InputError(
            f"{escaped(path)} is a picture of 8 bits; a depth map has 16 bits or more, "
            "or is a .npy of metres."
        )
    return depth_of(found, path, 1.0 if metres else scale)


def depth_of(found: np.ndarray, path: str, scale: float) -> np.ndarray:
    """[H W] float32 metres of values of which `scale` make a metre, 0 where unknown."""
    path = escaped(path)
    if found.dtype.kind not in "uif":
        raise errors.InputError(
            f"{path} holds {found.dtype}; a depth map holds numbers."
        )
    depth = found.astype(np.float32) / np.float32(scale)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def open_labels(
    spec: str,
    *,
    classes: int | None = None,
    first: int = 0,
    ignore: int = 255,
    ids: Mapping[int, int] | None = None,
    max_pixels: int = decode.MAX_PIXELS,
    rules: decode.Rules = decode.RULES,
) -> Pairs | dense_tfds.TfdsPairs:
    """Photographs with label maps.

    Args:
        spec: pairs:IMAGES,LABELS (two folders; partners have the same path but for the
            extension; LABELS/classes.txt may name the classes, one a line),
            ade20k:ROOT:training|validation, voc:ROOT:train|val|trainval,
            cityscapes:ROOT:train|val, or a TFDS set as for `open_source`.
        classes, first, ignore, ids: of `read_labels`, for pairs: and tfds:; the layouts
            know theirs. None takes the names of classes.txt, those that TFDS knows, or
            as many classes as `ids` names.
        max_pixels, rules: of decoding the photographs, as `decode.decode`.
    Returns: the pairs, in the order of their names.
    Raises: ValueError if files are missing, with how many and which.
    """
    kind, rest = _kind(spec, LABELLED)
    if kind == "tfds":
        *found, names = dense_tfds.opened(spec, dense_tfds.LABELS)
    else:
        found, names = LABELLED[kind](spec, rest)
    if kind not in ("pairs", "tfds"):
        if ids:
            raise errors.InputError(
                f"{spec} knows its ids; ids={_text(ids)} is not for it."
            )
        first, ignore = int(kind == "ade20k"), 255
    else:
        if ids:
            first = 0
            classes = classes or (None if names else max(ids.values()) + 1)
        names = _named(spec, names, classes, first)
    if ids and not IGNORED <= min(ids.values()) <= max(ids.values()) < len(names):
        raise errors.InputError(
            f"ids={_text(ids)} must name classes from 0 to {len(names) - 1}, or ignore."
        )
    told = {"classes": len(names), "first": first, "ignore": ignore, "ids": ids}
    if kind == "tfds":
        read = functools.partial(labels_of, **told)
        return dense_tfds.TfdsPairs(spec, *found, read, names, max_pixels, rules)
    read = functools.partial(read_labels, **told)
    return Pairs(*found, read, names, max_pixels, rules)


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
    spec: str,
    *,
    scale: float = 1000.0,
    kb_crop: bool = False,
    max_pixels: int = decode.MAX_PIXELS,
    rules: decode.Rules = decode.RULES,
) -> Pairs | dense_tfds.TfdsPairs | kitti.Cropped:
    """Photographs with depth maps.

    Args:
        spec: pairs:IMAGES,DEPTHS (two folders; partners have the same path but for the
            extension); nyud:ROOT:LIST, where LIST is train, test or a text file in
            ROOT with an image and a depth map a line (nyu_train.txt for train);
            kitti:ROOT:LIST likewise (kitti_eigen_train.txt), its images below
            ROOT/input and its maps below ROOT/gt_depth; or a TFDS set as for
            `open_source`.
        scale: of `read_depth`; depth of floating point is in metres.
        kb_crop: whether `kitti.Cropped` keeps a part of each.
        max_pixels, rules: of decoding the photographs, as `decode.decode`.
    Returns: the pairs.
    Raises: ValueError if files are missing, with how many and which.
    """
    kind, rest = _kind(spec, MEASURED)
    if kind == "tfds":
        *found, _ = dense_tfds.opened(spec, dense_tfds.DEPTHS)
        read = functools.partial(_metres, scale=scale)
        pairs = dense_tfds.TfdsPairs(spec, *found, read, (), max_pixels, rules)
    else:
        found, _ = MEASURED[kind](spec, rest)
        read = functools.partial(read_depth, scale=scale)
        pairs = Pairs(*found, read, (), max_pixels, rules)
    return kitti.Cropped(pairs) if kb_crop else pairs


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
