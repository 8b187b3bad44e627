"""Where data sets keep their photographs and the maps that belong to them.

Each function takes a spec, for its messages, and what follows the kind in it; it gives
((image files), (map files)) and the names of the classes, none for depth.
"""

import collections
import os
import pathlib
import sys
from collections.abc import Iterable

from dinov2_jax import errors
from dinov2_jax.data import mapfiles

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
TARGETS = mapfiles.LOSSLESS
# fmt: off
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
    "sheep", "sofa", "train", "tvmonitor",
)
CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light",
    "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
    "bus", "train", "motorcycle", "bicycle",
)
# fmt: on
ADE20K = 150  # classes of the scene parsing challenge; their ids start at 1

Files = tuple[tuple[str, ...], tuple[str, ...]]
Found = tuple[Files, tuple[str, ...]]


def folders(spec: str, rest: str) -> Found:
    """IMAGES,MAPS: partners in two folders, and the names in MAPS/classes.txt."""
    parts = [pathlib.Path(part).expanduser() for part in rest.split(",")]
    if len(parts) != 2 or not all(part.is_dir() for part in parts):
        raise errors.InputError(f"{spec} must name two folders, pairs:IMAGES,MAPS.")
    listed = parts[1] / "classes.txt"
    names = tuple(listed.read_text().split("\n")) if listed.is_file() else ()
    names = tuple(name.strip() for name in names if name.strip())
    images, targets = _stems(parts[0], IMAGES), _stems(parts[1], TARGETS)
    if set(images) - set(targets):
        _require_readable(spec, parts[1], set(images) - set(targets))
    return _matched(spec, images, targets), names


def _require_readable(spec: str, root: pathlib.Path, lacking: set[str]) -> None:
    """Raises ValueError if maps that seem to be missing stand there in other formats."""
    others = _stems(root, tuple(mapfiles.REFUSED))
    there = sorted(lacking & set(others))
    if there:
        ending = os.path.splitext(others[there[0]])[1].lower()
        raise errors.InputError(
            f"{spec}: {len(there)} maps, such as {others[there[0]]}, cannot be used: "
            f"{ending} {mapfiles.REFUSED[ending]}. Maps are one of "
            f"{', '.join(TARGETS)}, made from their source."
        )


def _stems(root: pathlib.Path, extensions: tuple[str, ...], end: str = ""):
    """{path without extension and `end`: file} of all such files below a folder."""
    found = collections.defaultdict(list)
    for folder, _, files in os.walk(root, followlinks=True):
        for file in files:
            stem, extension = os.path.splitext(file)
            if extension.lower() in extensions and stem.endswith(end):
                stem = stem.removesuffix(end)
                key = os.path.relpath(os.path.join(folder, stem), root)
                found[key].append(os.path.join(folder, file))
    twice = [files for files in found.values() if len(files) > 1]
    if twice:
        raise errors.InputError(
            f"{len(twice)} names in {root} stand for several files: "
            f"{_some(file for files in twice for file in files)}; keep one of each."
        )
    return {key: files[0] for key, files in found.items()}


def _matched(spec: str, images: dict[str, str], targets: dict[str, str]) -> Files:
    """Images and targets of the same names, in their order."""
    for have, lack, words in (
        (images, targets, "images have no map"),
        (targets, images, "maps have no image"),
    ):
        alone = sorted(set(have) - set(lack))
        if alone:
            raise errors.InputError(
                f"{spec}: {len(alone)} of {len(have)} {words} of the same name: "
                f"{_some(alone)}; add the partners or remove these."
            )
    return _whole(spec, [(images[key], targets[key]) for key in sorted(images)])


def _whole(spec: str, pairs: Iterable[tuple[str, str]]) -> Files:
    """Images and targets apart; raises ValueError if there are none."""
    pairs = list(pairs)
    if not pairs:
        raise errors.InputError(f"{spec} holds no image; check the folder.")
    return tuple(zip(*pairs))


def _some(names: Iterable[str], most: int = 3) -> str:
    """The first few names."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def ade20k(spec: str, rest: str) -> Found:
    """ROOT:training or ROOT:validation, as the scene parsing challenge unpacks."""
    root, split = _root(spec, rest, ("training", "validation"))
    names = tuple(str(i) for i in range(1, ADE20K + 1))
    listed = root / "objectInfo150.txt"
    if listed.is_file():
        lines = listed.read_text().strip().split("\n")[1:]
        if len(lines) != ADE20K:
            raise errors.InputError(f"{listed} has {len(lines)} classes, not {ADE20K}.")
        names = tuple(line.split("\t")[-1].strip() for line in lines)
    images = _stems(_folder(spec, root / "images" / split), IMAGES)
    labels = _stems(_folder(spec, root / "annotations" / split), TARGETS)
    return _matched(spec, images, labels), names


def voc(spec: str, rest: str) -> Found:
    """ROOT:LIST, where ROOT is VOC2012 and LIST one of ImageSets/Segmentation."""
    root, split = _root(spec, rest, ())
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    return _listed(
        spec,
        listed,
        [
            (root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png")
            for name in _lines(spec, listed)
        ],
    ), VOC


def cityscapes(spec: str, rest: str) -> Found:
    """ROOT:train or ROOT:val, with the training ids that its scripts make."""
    root, split = _root(spec, rest, ("train", "val"))
    images = _folder(spec, root / "leftImg8bit" / split)
    labels = _folder(spec, root / "gtFine" / split)
    return _matched(
        spec,
        _stems(images, IMAGES, "_leftImg8bit"),
        _stems(labels, TARGETS, "_gtFine_labelTrainIds"),
    ), CITYSCAPES


def nyud(spec: str, rest: str) -> Found:
    """ROOT:train, ROOT:test or ROOT:FILE, which has an image and a map a line."""
    root, split = _root(spec, rest, ())
    listed = root / {"train": "nyu_train.txt", "test": "nyu_test.txt"}.get(split, split)
    return _listed(spec, listed, _measured(spec, listed, root, root)), ()


def kitti(spec: str, rest: str) -> Found:
    """ROOT:train, ROOT:test or ROOT:FILE, in the layout of the depth toolbox.

    Source: KITTIDataset of the Monocular-Depth-Estimation-Toolbox, in its order.
    """
    root, split = _root(spec, rest, ())
    listed = root / (
        f"kitti_eigen_{split}.txt" if split in ("train", "test") else split
    )
    folders = [_folder(spec, root / name) for name in ("input", "gt_depth")]
    return _listed(spec, listed, sorted(_measured(spec, listed, *folders))), ()


def _measured(
    spec: str, listed: pathlib.Path, images: pathlib.Path, depths: pathlib.Path
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """The pairs of a list whose lines have an image, a map and perhaps a focal length.

    Lines whose map is called None have no truth: they are left out and counted.
    """
    pairs, lines = [], _lines(spec, listed)
    for line in lines:
        parts = line.split()
        if len(parts) < 2:
            raise errors.InputError(
                f"{listed} has the line {line!r}; it needs two files."
            )
        if "None" not in parts[:2]:
            pairs.append((images / parts[0].strip("/"), depths / parts[1].strip("/")))
    if len(pairs) < len(lines):
        print(
            f"{listed}: {len(lines) - len(pairs)} of {len(lines)} lines have no map and "
            "are left out",
            file=sys.stderr,
        )
    return pairs


def _root(spec: str, rest: str, splits: tuple[str, ...]) -> tuple[pathlib.Path, str]:
    """The folder and the split of ROOT:SPLIT."""
    root, _, split = rest.rpartition(":")
    if not root or not split or (splits and split not in splits):
        raise errors.InputError(
            f"{spec} must end in :{'|:'.join(splits) or 'LIST'} behind its folder."
        )
    return _folder(spec, pathlib.Path(root).expanduser()), split


def _folder(spec: str, path: pathlib.Path) -> pathlib.Path:
    """The path itself, if it is a folder."""
    if not path.is_dir():
        raise errors.InputError(
            f"{spec} needs the folder {path}, which does not exist."
        )
    return path


def _lines(spec: str, path: pathlib.Path) -> list[str]:
    """Lines of a list that are not empty."""
    if not path.is_file():
        raise errors.InputError(f"{spec} needs the list {path}, which does not exist.")
    return [line.strip() for line in path.read_text().split("\n") if line.strip()]


def _listed(spec: str, listed: pathlib.Path, pairs: list[tuple]) -> Files:
    """Pairs of a list, if all their files exist."""
    lost = [str(path) for pair in pairs for path in pair if not path.is_file()]
    if lost:
        raise errors.InputError(
            f"{spec}: {len(lost)} of {2 * len(pairs)} files in {listed} do not exist: "
            f"{_some(lost)}; unpack the data set whole."
        )
    return _whole(spec, [tuple(map(str, pair)) for pair in pairs])
