"""Where data sets keep their photographs and the maps that belong to them.

Each function takes a spec, for its messages, and what follows the kind in it; it gives
((image files), (map files)) and the names of the classes, none for depth.
"""

import codecs
import collections
import os
import pathlib
from collections.abc import Iterable

from dinov2_jax import errors
from dinov2_jax.data import mapfiles, walk
from dinov2_jax.data.decode import EXTENSIONS as IMAGES
from dinov2_jax.escaping import escaped, normalized

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
CLASSES = "classes.txt"  # names of the classes, beside the maps of pairs:
ADE20K = 150  # classes of the scene parsing challenge; their ids start at 1

Files = tuple[tuple[str, ...], tuple[str, ...]]
Found = tuple[Files, tuple[str, ...]]


def folders(spec: str, rest: str) -> Found:
    """IMAGES,MAPS: partners in two folders, and the names in MAPS/classes.txt."""
    parts = [pathlib.Path(part).expanduser() for part in rest.split(",")]
    if len(parts) != 2 or not all(map(os.path.isdir, parts)):
        raise errors.InputError(f"{spec} must name two folders, pairs:IMAGES,MAPS.")
    listed = parts[1] / CLASSES
    names = (
        tuple(map(normalized, _lines(spec, listed))) if os.path.isfile(listed) else ()
    )
    ignored = walk.Ignored()
    images = _stems(parts[0], IMAGES, ignored)
    targets = _maps(spec, parts[1], images, ignored)
    return _matched(spec, images, targets, ignored), names


def _maps(
    spec: str,
    root: pathlib.Path,
    images: dict[str, str],
    ignored: walk.Ignored,
    end: str = "",
) -> dict[str, str]:
    """`_stems` of the maps of images.

    Raises: ValueError if maps that seem to be missing stand there in other formats.
    """
    targets = _stems(root, TARGETS, ignored, end)
    lacking = set(images) - set(targets)
    for ending in mapfiles.REFUSED if lacking else ():
        others = _stems(root, (ending,), walk.Ignored(), end)
        there = sorted(lacking & set(others))
        if there:
            raise errors.InputError(
                f"{spec}: {len(there)} maps, such as {escaped(others[there[0]])}, cannot "
                f"be used: {ending} {mapfiles.REFUSED[ending]}. Maps are one of "
                f"{', '.join(TARGETS)}, made from their source."
            )
    return targets


def _stems(
    root: pathlib.Path,
    extensions: tuple[str, ...],
    ignored: walk.Ignored,
    end: str = "",
):
    """{path without extension and `end`: file} of all such files below a folder."""
    found = collections.defaultdict(list)
    for file in map(os.fsdecode, walk.Walk(root, ignored).files()):
        stem, extension = os.path.splitext(file)
        if extension.lower() not in extensions:
            if file != CLASSES:
                ignored.file(file)
        elif not stem.endswith(end):
            ignored.entry(f"files that do not end in {end}{extension}", file)
        else:
            key = normalized(stem.removesuffix(end))
            found[key].append(os.path.join(root, file))
    twice = [files for files in found.values() if len(files) > 1]
    if twice:
        raise errors.InputError(
            f"{len(twice)} names in {root} stand for several files: "
            f"{_some(escaped(file) for files in twice for file in files)}; keep one "
            "of each."
        )
    return {key: files[0] for key, files in found.items()}


def _matched(
    spec: str,
    images: dict[str, str],
    targets: dict[str, str],
    ignored: walk.Ignored,
) -> Files:
    """Images and targets of the same names, in their order."""
    for have, lack, words in (
        (images, targets, "images have no map"),
        (targets, images, "maps have no image"),
    ):
        alone = sorted(set(have) - set(lack))
        if alone:
            raise errors.InputError(
                f"{spec}: {len(alone)} of {len(have)} {words} of the same name: "
                f"{_some(alone)}; add the partners or remove these"
                + (f" (ignored: {ignored})." if ignored else ".")
            )
    pairs = [(images[key], targets[key]) for key in sorted(images)]
    return _whole(spec, pairs, ignored)


def _whole(spec: str, pairs: Iterable[tuple[str, str]], ignored: walk.Ignored) -> Files:
    """Images and targets apart; raises ValueError if there are none."""
    pairs = list(pairs)
    if not pairs:
        raise errors.InputError(
            f"{spec} holds no image (ignored: {ignored or 'nothing'}); check the folder."
        )
    walk.tell(spec, len(pairs), ignored)
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
    if os.path.isfile(listed):
        lines = _lines(spec, listed)[1:]
        if len(lines) != ADE20K:
            raise errors.InputError(f"{listed} has {len(lines)} classes, not {ADE20K}.")
        names = tuple(normalized(line.split("\t")[-1].strip()) for line in lines)
    ignored = walk.Ignored()
    images = _stems(_folder(spec, root / "images" / split), IMAGES, ignored)
    folder = _folder(spec, root / "annotations" / split)
    labels = _maps(spec, folder, images, ignored)
    return _matched(spec, images, labels, ignored), names


def voc(spec: str, rest: str) -> Found:
    """ROOT:LIST, where ROOT is VOC2012 and LIST one of ImageSets/Segmentation."""
    root, split = _root(spec, rest, ())
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    return _listed(
        spec,
        root,
        listed,
        [
            (root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png")
            for name in _lines(spec, listed)
        ],
        walk.Ignored(),
    ), VOC


def cityscapes(spec: str, rest: str) -> Found:
    """ROOT:train or ROOT:val, with the training ids that its scripts make."""
    root, split = _root(spec, rest, ("train", "val"))
    folder = _folder(spec, root / "leftImg8bit" / split)
    ignored = walk.Ignored()
    images = _stems(folder, IMAGES, ignored, "_leftImg8bit")
    folder = _folder(spec, root / "gtFine" / split)
    labels = _maps(spec, folder, images, ignored, "_gtFine_labelTrainIds")
    return _matched(spec, images, labels, ignored), CITYSCAPES


def nyud(spec: str, rest: str) -> Found:
    """ROOT:train, ROOT:test or ROOT:FILE, which has an image and a map a line."""
    root, split = _root(spec, rest, ())
    listed = root / {"train": "nyu_train.txt", "test": "nyu_test.txt"}.get(split, split)
    ignored = walk.Ignored()
    pairs = _measured(spec, listed, root, root, ignored)
    return _listed(spec, root, listed, pairs, ignored), ()


def kitti(spec: str, rest: str) -> Found:
    """ROOT:train, ROOT:test or ROOT:FILE, in the layout of the depth toolbox.

    Source: KITTIDataset of the Monocular-Depth-Estimation-Toolbox, in its order.
    """
    root, split = _root(spec, rest, ())
    listed = root / (
        f"kitti_eigen_{split}.txt" if split in ("train", "test") else split
    )
    folders = [_folder(spec, root / name) for name in ("input", "gt_depth")]
    ignored = walk.Ignored()
    pairs = sorted(_measured(spec, listed, *folders, ignored))
    return _listed(spec, root, listed, pairs, ignored), ()


def _measured(
    spec: str,
    listed: pathlib.Path,
    images: pathlib.Path,
    depths: pathlib.Path,
    ignored: walk.Ignored,
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """The pairs of a list whose lines have an image, a map and perhaps a focal length.

    Lines whose map is called None have no truth: they are left out and counted.
    """
    pairs = []
    for line in _lines(spec, listed):
        parts = line.split()
        if len(parts) < 2:
            raise errors.InputError(
                f"{listed} has the line {line!r}; it needs two files."
            )
        if "None" in parts[:2]:
            ignored.entry("lines without a map", parts[0])
        else:
            pairs.append((images / parts[0].strip("/"), depths / parts[1].strip("/")))
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
    if not os.path.isdir(path):
        raise errors.InputError(
            f"{spec} needs the folder {path}, which does not exist."
        )
    return path


def _lines(spec: str, path: pathlib.Path) -> list[str]:
    """Lines of a list that are not empty, as the file system spells names."""
    if not os.path.isfile(path):
        raise errors.InputError(f"{spec} needs the list {path}, which does not exist.")
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [os.fsdecode(line.strip()) for line in lines if line.strip()]


def _listed(
    spec: str,
    root: pathlib.Path,
    listed: pathlib.Path,
    pairs: list[tuple],
    ignored: walk.Ignored,
) -> Files:
    """Pairs of a list of files below a folder, if all of them exist."""
    whole = []
    for pair in pairs:
        names = [os.path.relpath(path, root) for path in pair]
        hidden = [name for name in names if walk.is_service(name)]
        if hidden:
            ignored.entry(walk.HIDDEN, hidden[0])
        else:
            whole.append(tuple(map(str, pair)))
    lost = [path for pair in whole for path in pair if not os.path.isfile(path)]
    if lost:
        raise errors.InputError(
            f"{spec}: {len(lost)} of {2 * len(whole)} files in {listed} do not exist: "
            f"{_some(map(escaped, lost))}; unpack the data set whole."
        )
    return _whole(spec, whole, ignored)
