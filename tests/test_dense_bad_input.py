"""Pairs and settings of pixels that cannot be used: one line, before any training."""

import pathlib
import shutil

import densefiles
import numpy as np
import peers
import pytest
import rasters
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.convert import export, names

SIDE = 32
SMALL = {
    "steps": 2,
    "batch_size": 8,
    "crop": SIDE,
    "warmup": 1,
    "test_batch": 8,
    "log_every": 1,
}
SEGMENTATION = SMALL | {"side": SIDE, "stride": SIDE}
DEPTH = SMALL | {
    "crop": (SIDE, SIDE),
    "method": "lin1",
    "bins": 8,
    "border": (0, 0, 0, 0),
    "eval_crop": "none",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a tiny backbone."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    built = peers.model(patch_size=8, image_size=SIDE)
    state = names.backbone_to_official(peers.params(built), 8)
    export.write_safetensors(path, state, export.about(built))
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folders of label maps of two classes, and of depth maps."""
    home = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for i in range(4):
            image = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            labels = (image[..., 0] > 128).astype(np.uint8)
            densefiles.save(home / "labels" / part, str(i), image, labels)
            densefiles.save(home / "depth" / part, str(i), image, 1.0 + labels)
        (home / "labels" / part / "maps" / "classes.txt").write_text("dark\nlight\n")
    return home


@pytest.fixture
def ask(weights, sets, tmp_path, capsys):
    """Evaluates a changed copy of a set; returns exit code and last line."""

    def run(task, change=None, **settings):
        kind = "labels" if task.startswith("segmentation") else "depth"
        root = tmp_path / "sets"
        if not root.exists():
            shutil.copytree(sets / kind, root)
        if change is not None:
            change(root)
        given = (SEGMENTATION if kind == "labels" else DEPTH) | settings
        options = [f"--weights={weights}", f"--out={tmp_path / 'out'}"]
        for part in ("train", "val"):
            folder = root / part
            options.append(f"--{part}=pairs:{folder / 'images'},{folder / 'maps'}")
        options += [f"--set={key}={value}" for key, value in given.items()]
        code = command.main(["evaluate", task, *options])
        return code, capsys.readouterr().err.strip().split("\n")

    return run


def put(name: str, pixels: np.ndarray):
    """Replaces a file of a set by a picture."""
    return lambda root: Image.fromarray(pixels).save(root / name)


def nothing(root: pathlib.Path) -> None:
    """Leaves a set as it is."""


def damaged(name: str):
    """Cuts a file of a set."""
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:60])


def everywhere(function):
    """Changes the ids of all maps of a set."""

    def change(root: pathlib.Path) -> None:
        for path in root.glob("*/maps/*.png"):
            Image.fromarray(function(np.asarray(Image.open(path)))).save(path)

    return change


def third_class(root: pathlib.Path) -> None:
    """Names a class that no map has."""
    for part in ("train", "val"):
        path = root / part / "maps" / "classes.txt"
        path.write_text("dark\nlight\nmoon\n")


def binary(ids: np.ndarray) -> np.ndarray:
    """0 and 255, as many tools write masks."""
    return (255 * ids).astype(np.uint8)


def as_jpeg(root: pathlib.Path) -> None:
    """Writes all maps as JPEG."""
    for path in root.glob("*/maps/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()


SMALLER = np.zeros((SIDE - 1, SIDE), np.uint8)
SEVEN = np.full((SIDE, SIDE), 7, np.uint8)
METRES = np.full((SIDE, SIDE), 1000, np.uint16)


def floats(root: pathlib.Path) -> None:
    """Puts a photograph of floating point samples into a set."""
    (root / "train" / "images" / "0.png").unlink()
    samples = np.linspace(0, 0.5, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    (root / "train" / "images" / "0.tif").write_bytes(rasters.tiff(samples))


def corrupt(root: pathlib.Path) -> None:
    """Loses the end of a photograph that is a JPEG."""
    path = root / "train" / "images" / "2.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    data = path.with_suffix(".jpg").read_bytes()
    lost = data[:-200] + bytes(198) + data[-2:]
    path.with_suffix(".jpg").write_bytes(lost)


PAIRS = {
    "a photograph of train of floating point samples": (
        "depth",
        floats,
        {},
        ["train: ", "0.tif", "declares no range", "set data.range=LOW,HIGH"],
    ),
    "a corrupt photograph of train, with damaged=skip": (
        "segmentation",
        corrupt,
        {"damaged": "skip"},
        ["train: ", "2.jpg", "a JPEG image whose data is corrupt", "mend or remove"],
    ),
    "a photograph of train above max_pixels": (
        "segmentation",
        nothing,
        {"max_pixels": SIDE * SIDE - 1},
        ["32 x 32 = 1024 pixels; 1 to max_pixels=1023 are allowed"],
    ),
    "a map of val of another size": (
        "segmentation",
        put("val/maps/3.png", SMALLER),
        {},
        ["val: ", "3.png has 32x32", "has 31x32"],
    ),
    "a map of train of another size": (
        "segmentation",
        put("train/maps/3.png", SMALLER),
        {},
        ["train: ", "3.png has 32x32", "has 31x32"],
    ),
    "an id of val out of range": (
        "segmentation",
        put("val/maps/3.png", SEVEN),
        {},
        ["val: ", "3.png holds the ids 7", "Set classes, first_id or ignore_id"],
    ),
    "a damaged map": ("segmentation", damaged("val/maps/3.png"), {}, ["3.png cannot"]),
    "a damaged photograph of val": (
        "segmentation",
        damaged("val/images/3.png"),
        {},
        ["val: ", "3.png", "cannot be read"],
    ),
    "a named class that no map has": (
        "segmentation",
        third_class,
        {},
        ["1 of 3 classes", "moon", "absent_classes=true"],
    ),
    "masks of 0 and 255": (
        "segmentation",
        everywhere(binary),
        {},
        ["one class, number 0", "ids=0:0,255:1"],
    ),
    "masks of 0 and 255, counted": (
        "segmentation",
        lambda root: [everywhere(binary)(root), drop_names(root)],
        {"classes": 2},
        ["one class, number 0", "ids=0:0,255:1"],
    ),
    "masks of 255 that is not ignored": (
        "segmentation",
        everywhere(binary),
        {"ignore_id": -1},
        ["holds the ids 255", "ids=0:0,255:1"],
    ),
    "maps as JPEG": ("segmentation", as_jpeg, {}, ["4 maps", ".jpg is of a lossy"]),
    "a setting of ids that is none": (
        "segmentation",
        nothing,
        {"ids": "0=1"},
        ["ids=0=1 is not ID:CLASS", "such as 0:0,255:1"],
    ),
    "a crop of other sizes": (
        "depth",
        nothing,
        {"eval_crop": "nyu"},
        ["val", "480x640 pixels, not 32x32", "eval_crop=none"],
    ),
    "a border of other sizes": (
        "depth",
        nothing,
        {"border": (0, 40, 0, 8)},
        ["train", "border=(0, 40, 0, 8) does not lie in images of 32x32"],
    ),
    "images below KITTI's crop": (
        "depth",
        nothing,
        {"kb_crop": True},
        ["32x32 pixels; KITTI's crop keeps 352x1216", "kb_crop=false"],
    ),
    "depth maps of 8 bits": (
        "depth",
        put("val/maps/3.png", SEVEN),
        {},
        ["3.png is a picture of 8 bits; a depth map has 16"],
    ),
    "depth beyond the range": (
        "depth",
        nothing,
        {"scale": 1.0},
        ["No pixel of val has a known depth in the range", "check scale"],
    ),
    "a map of val of another size, of depth": (
        "depth",
        put("val/maps/3.png", METRES[1:]),
        {},
        ["val: ", "3.png has 32x32", "has 31x32"],
    ),
}


def drop_names(root: pathlib.Path) -> None:
    """Removes the names of the classes."""
    for path in root.glob("*/maps/classes.txt"):
        path.unlink()


@pytest.mark.parametrize("what", PAIRS)
def test_pairs_that_cannot_be_used_end_no_training(what, ask, told, tmp_path):
    task, change, settings, words = PAIRS[what]
    code, lines = ask(task, change, **settings)
    assert code == 1, lines
    for word in words:
        assert word in lines[-1]
    assert not any(line.startswith("step") for line in lines)
    assert not list((tmp_path / "out").glob("training/[0-9]*"))
    told(f"{task}: {what}", lines[-1])


def test_all_bad_pairs_are_counted(ask):
    def two(root):
        put("val/maps/1.png", SEVEN)(root)
        put("val/maps/3.png", SMALLER)(root)

    code, lines = ask("segmentation", two)
    assert code == 1 and "val (and 1 more of 4): " in lines[-1]


def test_ids_may_be_told_and_classes_may_be_absent(ask):
    code, lines = ask("segmentation", everywhere(binary), ids="0:0,255:1")
    assert code == 0, lines
    code, lines = ask("segmentation", third_class, absent_classes=True, ids="0:0,255:1")
    assert code == 0, lines
    assert any(
        "1 of 3 classes occur in no map of train and val: moon" in x for x in lines
    )


def test_maps_of_one_class_alone_are_warned_of(ask):
    code, lines = ask("segmentation", everywhere(np.zeros_like), absent_classes=True)
    assert code == 0
    assert any("labelled pixels of val are of one class, dark:" in x for x in lines)


def test_maps_beyond_the_limit_are_not_read_and_it_is_said(ask):
    code, lines = ask("segmentation", check_limit=2)
    assert code == 0
    assert any(line.endswith("of 4 of train are sound") for line in lines)
    assert any(line.startswith("map 2/2") for line in lines)


def test_photographs_are_decoded_by_the_settings(ask):
    def both(root):
        floats(root)
        corrupt(root)

    told = {"range": "0,0.5", "damaged": "fill", "max_pixels": SIDE * SIDE}
    code, lines = ask("segmentation", both, **told)
    assert code == 0, lines
