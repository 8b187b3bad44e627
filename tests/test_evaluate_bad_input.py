"""What `evaluate` cannot do is refused in one line, before a feature is made."""

import json

import numpy as np
import peers
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.cli import suites
from dinov2_jax.convert import export, names

REFUSED = {
    "a temperature of 0": ("knn", ("--set=temp=0",), "temp=0.0; expected 1e-6 to 1e6"),
    "a negative limit": ("knn", ("--set=limit=-5",), "limit=-5; expected 0 to"),
    "no neighbour": ("knn", ("--set=neighbors=0",), "neighbors=(0,); expected 1 to"),
    "more few images than there are": (
        "knn",
        ("--set=few=6",),
        "the smallest class has 5. Ask for 1 to 5",
    ),
    "more few images than a set has": (
        "knn",
        ("--set=few=500", "--train=demo:train", "--val=demo:val"),
        "the smallest class has 64",
    ),
    "patches that do not fill a crop": (
        "knn",
        ("--set=crop=28",),
        "no multiple of the patch size 8",
    ),
    "a crop larger than the image": (
        "knn",
        ("--set=crop=40",),
        "crop=40 is larger than the shorter side of the resized image, resize=32",
    ),
    "no row held out": (
        "logreg",
        ("--set=held_out=0.01",),
        "holds out 0; choose a share",
    ),
    "a falling range of C": (
        "logreg",
        ("--set=lowest=3", "--set=highest=1"),
        "lowest=3.0 is above highest=1.0",
    ),
    "labels without their metric": (
        "logreg",
        ("--labels=train=x",),
        "--labels is for metric=map",
    ),
    "several labels of a folder": (
        "logreg",
        ("--set=metric=map",),
        "several labels an image come from tfds:",
    ),
    "no file of labels": (
        "logreg",
        ("--set=metric=map", "--labels=train=none", "--labels=val=none"),
        "--labels train=none is no file",
    ),
    "a test set called val": (
        "linear",
        ("--test=val=demo:val",),
        "val cannot name a test set",
    ),
    "a test set with a slash": (
        "linear",
        ("--test=a/b=demo:val",),
        "a/b cannot name a test set",
    ),
    "no folder of a test set": (
        "linear",
        ("--test=x=folder:none",),
        "folder:none is not a folder",
    ),
    "a test set of other classes": (
        "linear",
        ("--test=x=demo:val",),
        "x has 14 classes, of which 14",
    ),
    "no labels of a test set": (
        "linear",
        ("--test=x=demo:val", "--labels=x=none.json"),
        "none.json is no file",
    ),
    "more blocks than there are": (
        "linear",
        ("--set=blocks=9",),
        "these weights have 4",
    ),
    "no ground truth": (
        "retrieval",
        ("--set=protocol=revisited", "--set=truth=none.pkl"),
        "none.pkl is no file",
    ),
    "no file of ground truth": (
        "retrieval",
        ("--set=protocol=revisited",),
        "protocol=revisited needs --set truth=FILE",
    ),
    "a head, whose maps are not there": (
        "segmentation",
        ("--set=head=none.pth", "--train=", "--val=pairs:x,y"),
        "pairs:x,y must name two folders",
    ),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow backbone as a file."""
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export.write_safetensors(path, state, export.about(built))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two classes of 5 pictures each to train on and 4 to judge."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 10), ("val", 8)):
        for i in range(count):
            folder = root / split / ("dark", "light")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.full((32, 32, 3), 9 * i, np.uint8)
            Image.fromarray(pixels).save(folder / f"im-{i + 1}.png")
    return root


@pytest.fixture
def refused(weights, home, tmp_path, capsys):
    """The line that a task ends in; nothing is left of it."""

    def run(task, *more):
        own = {f"--{x}": f"folder:{home / x}" for x in ("train", "val")}
        own |= {"--weights": weights, "--out": tmp_path / "out"}
        own = {k: v for k, v in own.items() if not any(x.startswith(k) for x in more)}
        more = [x for x in more if x != "--train="]
        sizes = [] if task == "segmentation" else ["resize=32", "crop=32"]
        told = {x[6:].partition("=")[0] for x in more if x.startswith("--set=")}
        given = [f"{k}={v}" for k, v in own.items()]
        given += [f"--set={x}" for x in sizes if x.partition("=")[0] not in told]
        assert command.main(["evaluate", task, *given, *more]) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_cannot_be_is_refused_before_features_are_made(what, refused, told):
    task, more, words = REFUSED[what]
    line = refused(task, *more)
    assert words in line
    told(f"evaluate {task}: {what}", line)


def test_labels_beyond_the_classes_are_refused(refused, home, tmp_path, told):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[0], [999], *[[1]] * 8]))
    given = (f"--test=real=folder:{home / 'val'}", f"--labels=real={path}")
    line = refused("linear", *given)
    assert "label 999; labels are numbers of the 2 classes of train, 0 to 1" in line
    told("evaluate linear: a label beyond the classes", line)


@pytest.mark.parametrize(
    ("truth", "more", "words"),
    [
        ({"imlist": ["im-1"], "qimlist": ["im-9"]}, (), "lacks 1 images of the ground"),
        ({"imlist": "im-1"}, (), "is no ground truth of revisited Oxford or Paris"),
        (
            {"imlist": ["im-1", "im-2"], "qimlist": ["im-3"]},
            ("--set=limit=1",),
            "limit=1: protocol=revisited needs all images",
        ),
    ],
    ids=["missing images", "no ground truth", "a limit"],
)
def test_ground_truth_is_read_before_features_are_made(
    truth, more, words, refused, tmp_path, told, request
):
    path = tmp_path / "gnd.json"
    query = {"bbx": [0, 0, 32, 32], "easy": [0], "hard": [], "junk": []}
    path.write_text(json.dumps(truth | {"gnd": [query]}))
    given = ("--set=protocol=revisited", f"--set=truth={path}", *more)
    line = refused("retrieval", *given)
    assert words in line
    told(f"evaluate retrieval: {request.node.callspec.id}", line)


def test_a_class_that_train_lacks_is_refused_by_name(refused, tmp_path, told):
    (tmp_path / "val/moon").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "val/moon/1.png")
    for task in ("knn", "logreg", "linear"):
        line = refused(task, f"--val=folder:{tmp_path / 'val'}")
        assert (
            "val has 1 classes, of which 1 are not among the 2 of train: moon" in line
        )
    told("evaluate: a class of val that train lacks", line)


def test_every_task_of_a_list_is_opened_before_the_first_one_runs(
    weights, home, tmp_path, capsys
):
    path = tmp_path / "suite.py"
    text = f"""from ml_collections import ConfigDict

def get_config():
    spec = {{x: f"folder:{home}/{{x}}" for x in ("train", "val")}}
    tasks = {{"z": {{"task": "knn", **spec}}, "a": {{"task": "LATE"}}}}
    return ConfigDict({{"set": {{"crop": 32, "resize": 32}}, "tasks": tasks}})
"""
    spec = f'"train": "folder:{home}/train", "val": "folder:{home}/val"'
    voc = '"train": "voc:NONE:train", "val": "voc:NONE:val", "set": {"stride": 16}'
    late = {
        f'"linear", {spec}, "tests": {{"x": "folder:none"}}': "folder:none is not",
        f'"linear", {spec}, "labels": {{"x": "y"}}': "--labels x=... names no --test",
        f'"segmentation", {voc}': "needs the folder NONE",
        f'"retrieval", {spec}, "set": {{"protocol": "revisited"}}': "truth=FILE",
    }
    for entry, words in late.items():
        path.write_text(text.replace('"LATE"', entry))
        given = ["evaluate", "all", f"--config={path}", f"--weights={weights}"]
        assert command.main([*given, f"--out={tmp_path / 'out'}"]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert "1 of 2 tasks have images that cannot be opened: a." in line
        assert words in line
        assert not (tmp_path / "out").exists()
    assert list(suites.tasks(str(path))[1]) == ["z", "a"]  # as they are written
