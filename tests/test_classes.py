"""Classes of two sets: mapped by name, whatever their order and spelling."""

import json

import numpy as np
import peers
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.convert import export, names
from dinov2_jax.data import classes

CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
APART = "cafe\N{COMBINING ACUTE ACCENT}"  # as macOS writes it


def test_classes_are_numbered_as_those_of_training():
    train = ("ant", "bee", CAFE)
    assert classes.numbers(train, (CAFE, "ant"), "val").tolist() == [2, 0]
    assert classes.numbers(train, (APART, "bee"), "val").tolist() == [2, 1]
    assert classes.numbers(("b", "a"), ("a", "b"), "val").tolist() == [1, 0]
    assert classes.numbers(("0", "00"), ("00",), "val").tolist() == [1]


@pytest.mark.parametrize(
    ("train", "other", "words"),
    [
        (("a", "b"), ("a", "cat"), "val has 2 classes, of which 1 .* 2 of train: cat"),
        (("a", "b"), ("0", "1"), "of which 2 are not among the 2 of train: 0, 1"),
        (("a", "b"), tuple("cdef"), "c, d, e, ...\\. Name them as train does"),
        ((CAFE, APART), ("a",), "train has 1 classes in two Unicode spellings"),
        (("a", CAFE), (CAFE, APART), "val has 1 classes in two Unicode spellings"),
    ],
)
def test_classes_that_train_lacks_are_refused_by_name(train, other, words):
    with pytest.raises(ValueError, match=words):
        classes.numbers(train, other, "val")


def test_a_test_set_may_number_its_classes_if_it_names_none():
    train = ("n01", "n02", "n03")
    number = classes.named_or_numbered
    assert number(train, ("n03", "n01"), "v2").tolist() == [2, 0]
    assert number(train, ("2", "0", "1"), "v2").tolist() == [2, 0, 1]
    for other in (("n01", "cat"), ("0", "3"), ("n01", "1")):
        with pytest.raises(ValueError, match="v2 has 2 classes"):
            number(train, other, "v2")
    with pytest.raises(ValueError, match="not among"):
        number(("1", "2", "3"), ("0", "1", "2"), "v2")  # names or numbers?


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow backbone as a file."""
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export.write_safetensors(path, state, export.about(built))
    return path


def pictures(folder, levels: dict[str, int]):
    """Three pictures of noise around a level for each class."""
    rng = np.random.default_rng(0)
    for name, level in levels.items():
        (folder / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(level, level + 40, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return f"folder:{folder}"


SETTINGS = {
    "knn": ("neighbors=1",),
    "logreg": ("number=1", "lowest=4", "highest=4", "held_out=0.2"),
    "linear": ("steps=80", "rates=80.0", "blocks=1", "train_batch=8"),
}


@pytest.mark.parametrize("task", list(SETTINGS))
def test_a_validation_set_with_some_of_the_classes_is_judged_by_name(
    task, weights, tmp_path, capsys
):
    levels = {"a": 0, "b": 70, CAFE: 140, "d": 210}
    train = pictures(tmp_path / "train", levels)
    val = pictures(tmp_path / "val", {"b": 70, APART: 140})

    def run(*more):
        given = ["evaluate", task, f"--weights={weights}", f"--train={train}"]
        given += [f"--out={tmp_path / 'out'}", "--set=resize=32", "--set=crop=32"]
        given += [f"--set={x}" for x in SETTINGS[task]]
        given += ["--set=augment=false"] if task == "linear" else []
        return command.main([*given, *more])

    assert run(f"--val={val}") == 0
    about = json.loads((tmp_path / "out/results.json").read_text())
    # Solid levels of gray: by the numbers of another order nothing would be right.
    assert about["metrics"]["top1"] >= 5 / 6
    features = sorted((tmp_path / "out/features").iterdir())
    other = pictures(tmp_path / "other", {"b": 70, "moon": 140})
    capsys.readouterr()
    assert run(f"--val={other}", f"--out={tmp_path / 'other'}") == 1
    assert "not among the 4 of train: moon" in capsys.readouterr().err
    assert sorted((tmp_path / "out/features").iterdir()) == features
    assert not (tmp_path / "other/features").exists()
