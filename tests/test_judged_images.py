"""What `evaluate` says of doubtful sets, and of each image, beside its metrics."""

import json
import pathlib

import numpy as np
import peers
import pyarrow.parquet
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.convert import export, names

HEADS = ("steps=6", "rates=8.0", "blocks=1", "train_batch=8", "augment=false")
TASKS = {
    "knn": ("neighbors=1,3",),
    "logreg": ("number=1", "lowest=2", "highest=2", "held_out=0.3"),
    "linear": HEADS,
    "retrieval": ("pictures=0", "shown=2", "recall=1"),
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
    """Two classes of noise, 5 pictures each to train on and 4 to judge."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 8)):
        for i in range(count):
            folder = root / split / ("dark", "light")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, (32, 32, 3)) + 90 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"im-{i + 1}.png")
    return root


@pytest.fixture
def ask(weights, home, tmp_path):
    """Runs a task; returns the exit code and results.json."""

    def run(task, *more, **splits):
        splits = {"train": f"folder:{home / 'train'}"} | splits
        splits = {"val": f"folder:{home / 'val'}"} | splits
        given = [task, f"--weights={weights}", f"--out={tmp_path / 'out'}"]
        given += [f"--{name}={spec}" for name, spec in splits.items() if spec]
        given += [f"--cache={home / 'features'}"]
        told = {x[6:].partition("=")[0] for x in more if x.startswith("--set=")}
        own = ("resize=32", "crop=32", "batch_size=8", *TASKS[task])
        own = [x for x in own if x.partition("=")[0] not in told]
        code = command.main(["evaluate", *given, *(f"--set={x}" for x in own), *more])
        path = tmp_path / "out" / "results.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


@pytest.mark.parametrize("task", ["knn", "logreg", "linear"])
def test_every_image_of_val_has_its_prediction(task, ask, home, tmp_path):
    code, about = ask(task)
    assert code == 0
    table = pyarrow.parquet.read_table(tmp_path / "out/predictions.parquet")
    rows = table.to_pylist()
    files = {str(path) for path in (home / "val").rglob("*.png")}
    assert {row["id"] for row in rows} == files and len(rows) == 8
    for row in rows:
        assert row["label"] == pathlib.Path(row["id"]).parent.name
        assert row["correct"] == (row["label"] == row["prediction"])
        assert row["split"] == "val" and 0 < row["score"] <= 1
    assert about["metrics"]["top1"] == np.mean([row["correct"] for row in rows])
    if task == "knn":
        k = 4 - about["metrics"]["k"]
        other = [row[f"prediction_k{k}"] == row["label"] for row in rows]
        assert about["metrics"][f"top1_k{k}"] == np.mean(other)


def test_every_query_has_the_images_that_were_found(ask, tmp_path):
    code, about = ask("retrieval", train=None)
    assert code == 0
    rows = pyarrow.parquet.read_table(tmp_path / "out/predictions.parquet").to_pylist()
    firsts = []
    for row in rows:
        kinds = [pathlib.Path(name).parent.name for name in row["nearest"]]
        assert row["correct"] == [kind == row["label"] for kind in kinds]
        assert row["id"] not in row["nearest"] and len(kinds) == 2
        assert row["similarity"] == sorted(row["similarity"], reverse=True)
        firsts.append(row["correct"][0])
    assert about["metrics"]["recall_at_1"] == np.mean(firsts)
    assert about["metrics"]["map"] == pytest.approx(np.mean([x["score"] for x in rows]))


def test_tests_and_images_of_several_labels_have_predictions_too(ask, home, tmp_path):
    real = [[i % 2, 1] for i in range(10)]
    real[3] = []
    (tmp_path / "real.json").write_text(json.dumps(real))
    val = f"folder:{home / 'val'}"
    given = [f"--test=again={val}", f"--test=real={val}"]
    code, about = ask("linear", *given, f"--labels=real={tmp_path / 'real.json'}")
    assert code == 0 and set(about["data"]) == {"train", "val", "again", "real"}
    rows = pyarrow.parquet.read_table(tmp_path / "out/predictions.parquet").to_pylist()
    splits = {name: [r for r in rows if r["split"] == name] for name in about["data"]}
    assert [len(splits[x]) for x in ("val", "again", "real")] == [8, 8, 8]
    for one, other in zip(splits["val"], splits["real"]):
        assert one["prediction"] == other["prediction"] and other["label"] is None
        number = int(pathlib.Path(one["id"]).stem.partition("-")[2])
        assert [("dark", "light").index(x) for x in other["labels"]] == real[number - 1]


@pytest.mark.parametrize("task", ["knn", "logreg", "linear"])
def test_what_is_judged_on_its_own_training_images_is_warned_of(
    task, ask, home, capsys
):
    code, about = ask(task, val=f"folder:{home / 'train'}")
    text = "val has the same records as train"
    assert code == 0 and text in about["warnings"][0]
    assert f"{task}: warning: {text}" in capsys.readouterr().err
    assert task == "linear" or ask(task)[1]["warnings"] == []


def test_copies_of_training_images_are_warned_of(ask, home, tmp_path):
    for i, path in enumerate(sorted((home / "train").rglob("*.png"))[:3]):
        copy = tmp_path / "val" / path.parent.name / f"{i}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for path in (home / "val/light").iterdir():
        (tmp_path / "val/light").mkdir(exist_ok=True)
        (tmp_path / "val/light" / path.name).write_bytes(path.read_bytes())
    code, about = ask("knn", val=f"folder:{tmp_path / 'val'}")
    assert code == 0
    (text,) = about["warnings"]
    assert text.startswith("3 of 7 images of val have the very features of an image")


@pytest.mark.parametrize("task", ["knn", "logreg", "linear"])
def test_one_class_and_empty_class_folders_are_warned_of(task, ask, home, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "dark").symlink_to(home / split / "dark")
    (tmp_path / "train/moon").mkdir()
    (tmp_path / "train/.hidden").mkdir()
    code, about = ask(task, **{x: f"folder:{tmp_path / x}" for x in ("train", "val")})
    assert code == 0 and about["metrics"]["top1"] == 1
    assert [text.partition(",")[0] for text in about["warnings"]] == [
        "all images of train are of one class",
        "class folders of train without an image: 1 (moon).",
        "all images of val are of one class",
    ]


def test_retrieval_among_one_class_is_warned_of(ask, home, tmp_path):
    (tmp_path / "dark").symlink_to(home / "val/dark")
    (tmp_path / "moon").mkdir()
    code, about = ask("retrieval", train=None, val=f"folder:{tmp_path}")
    assert code == 0 and about["metrics"]["map"] == 1
    assert [text.partition(":")[0] for text in about["warnings"]] == [
        "class folders of val without an image",
        "all images of val are of one class, dark",
    ]


def test_k_above_the_number_of_images_is_said_and_few_images_are_not_repeated(
    ask, capsys
):
    code, about = ask("knn", "--set=neighbors=3,20,40", "--set=few=1,3")
    assert code == 0
    assert "neighbors=20, 40: there are only 10 training images" in about["warnings"][0]
    few = [k for k in about["metrics"] if "few" in k and not k.endswith("std")]
    assert few == ["top1_k1_few1", "top1_k3_few3", "top1_k6_few3"]
    (note,) = about["notes"]
    assert note.startswith("accuracy by k: 3: ") and "chosen on val itself" in note
    assert note in capsys.readouterr().out
