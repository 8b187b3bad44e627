"""Data that change under a kept cache, training or result give new numbers.

Each test evaluates, changes the data, and evaluates again, both in the same folders and
in fresh ones: these two agree, and differ from before.
"""

import collections
import json
import os
import pathlib

import densefiles
import numpy as np
import peers
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.cli import evaluate_depth, evaluate_segmentation
from dinov2_jax.convert import export, names
from dinov2_jax.data import fingerprint, sources

SIZES = ("resize=32", "crop=32", "batch_size=8")
HEADS = ("steps=8", "rates=8.0", "blocks=1", "train_batch=8", "log_every=99")
TASKS = {
    "knn": ("neighbors=1",),
    "logreg": ("number=1", "lowest=0", "highest=0", "held_out=0.3"),
    "linear": (*HEADS, "augment=false"),
    "retrieval": ("pictures=0",),
    "video": (*HEADS, "frames=2"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow backbone as a file."""
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export.write_safetensors(path, state, export.about(built))
    return path


def save(path: pathlib.Path, pixels: np.ndarray) -> None:
    """A picture; each is as large as any other and a second older than the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    os.utime(path, (save.clock, save.clock))
    save.clock += 1


save.clock = 1_700_000_000


def pictures(root: pathlib.Path) -> pathlib.Path:
    """Two classes of noise, dark and light, in two splits; BMPs of one size."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 8)):
        for i in range(count):
            pixels = rng.integers(0, 80, (32, 32, 3)) + 120 * (i % 2)
            name = f"{['dark', 'light'][i % 2]}/{i}/0.bmp"  # a clip of one frame
            save(root / split / name, pixels.astype(np.uint8))
    return root


def moved(root: pathlib.Path) -> None:
    """Half of the validation set stands in the other class's folder."""
    for i in (0, 1, 2, 3):
        kinds = ("dark", "light") if i % 2 == 0 else ("light", "dark")
        kinds = [root / "val" / kind / str(i) for kind in kinds]
        kinds[0].rename(kinds[1])


def blackened(root: pathlib.Path) -> None:
    """All light pictures to train on are black, under their names and sizes."""
    for path in root.glob("train/light/*/0.bmp"):
        save(path, np.zeros((32, 32, 3), np.uint8))


@pytest.fixture
def ask(weights, tmp_path):
    """Runs a task; returns its metrics."""

    def run(task, root, out, *more):
        given = [task, f"--weights={weights}", f"--val=folder:{root / 'val'}"]
        given += [f"--train=folder:{root / 'train'}"]
        given += [f"--out={tmp_path / out}", *(f"--set={x}" for x in SIZES)]
        given += [f"--set={x}" for x in TASKS[task]]
        assert command.main(["evaluate", *given, *more]) == 0
        return json.loads((tmp_path / out / "results.json").read_text())["metrics"]

    return run


@pytest.mark.parametrize("change", [moved, blackened])
@pytest.mark.parametrize("task", list(TASKS))
def test_pictures_that_change_are_evaluated_anew(task, change, ask, tmp_path):
    root = pictures(tmp_path / "data")
    before = ask(task, root, "out")
    assert ask(task, root, "out") == before
    change(root)
    after = ask(task, root, "out")
    assert after == ask(task, root, "fresh")
    assert after != before


def test_equal_weights_of_another_architecture_have_features_of_their_own(
    ask, weights, tmp_path
):
    root = pictures(tmp_path / "data")
    for changes in ({}, {"heads": 6}, {"offset": 0.0}, {"antialias": True}):
        built = peers.model(patch_size=8, image_size=32, **changes)
        state = names.backbone_to_official(peers.params(built), 8)
        other = tmp_path / "other.safetensors"
        export.write_safetensors(other, state, export.about(built))
        ask("knn", root, "out", f"--weights={other}")
    assert len(list((tmp_path / "out/features").iterdir())) == 2 * 4


def test_a_training_on_other_data_is_set_aside(ask, tmp_path, capsys):
    root = pictures(tmp_path / "data")
    ask("linear", root, "out")
    blackened(root)
    capsys.readouterr()
    ask("linear", root, "out")
    lines = capsys.readouterr().err
    assert "fingerprints.train changed since the training" in lines
    assert (tmp_path / "out/training.old/state.msgpack").is_file()


def test_weights_that_change_in_their_place_are_learnt_on_anew(
    ask, weights, tmp_path, capsys
):
    root, other = pictures(tmp_path / "data"), tmp_path / "other.safetensors"
    other.write_bytes(weights.read_bytes())
    ask("linear", root, "out", f"--weights={other}")
    ask("linear", root, "out")  # the same in another place
    assert not (tmp_path / "out/training.old").exists()
    ask("linear", root, "out", f"--weights={other}")
    built = peers.model(patch_size=8, image_size=32, heads=6)
    state = names.backbone_to_official(peers.params(built, seed=1), 8)
    export.write_safetensors(other, state, export.about(built))
    capsys.readouterr()
    after = ask("linear", root, "out", f"--weights={other}")
    assert "model.heads, weights_sha256 changed since the tr" in capsys.readouterr().err
    assert after == ask("linear", root, "fresh", f"--weights={other}")
    given = ["evaluate", "linear", f"--weights={weights}", f"--out={tmp_path / 'out'}"]
    given += [f"--{x}=folder:{root / x}" for x in ("train", "val")]
    given += [f"--set={x}" for x in (*SIZES, *TASKS["linear"])]
    assert command.main(given) == 1
    assert "different are model.heads, weights_sha256." in capsys.readouterr().err


SMALL = {"steps": 4, "batch_size": 8, "warmup": 1, "log_every": 99, "test_batch": 8}
KINDS = {
    evaluate_segmentation: {"crop": 64, "side": 128, "stride": 48, "lr": 0.02},
    evaluate_depth: {
        "method": "lin1",
        "crop": (64, 64),
        "border": (0, 0, 0, 0),
        "eval_crop": "none",
        "bins": 16,
        "lr": 0.02,
    },
}


@pytest.mark.parametrize("task", list(KINDS), ids=lambda task: task.__name__)
def test_maps_that_change_are_learnt_anew(task, tmp_path):
    def scene():
        rows = np.linspace(5, 1, 96)[:, None] + np.zeros(96)
        return np.repeat((rows * 40).astype(np.uint8)[..., None], 3, 2), rows

    made = densefiles.coin_folders if task is evaluate_segmentation else None
    specs = made(tmp_path) if made else densefiles.scene_folders(tmp_path, scene)
    backbone = densefiles.backbone(depth=2)

    def run(out):
        given = SMALL | KINDS[task]
        job = densefiles.job(task, backbone, specs, tmp_path / out, **given)
        return task.run(job).metrics

    before = run("out")
    assert run("out") == before
    for path in (tmp_path / "train/maps").glob("*.png"):
        ids = np.asarray(Image.open(path))
        old, size = path.stat().st_mtime_ns, ids.dtype.type
        swapped = np.where(ids == 255, ids, 1 - ids) if made else ids // 2
        Image.fromarray(swapped.astype(size)).save(path)
        os.utime(path, ns=(old + 10**9, old + 10**9))
    after = run("out")
    assert after == run("fresh") != before


def test_results_are_kept_only_for_the_same_data(
    weights, tmp_path, capsys, monkeypatch
):
    calls = collections.Counter()

    def counted(module, name):
        real = getattr(module, name)

        def count(one):
            calls[name] += 1
            return real(one)

        monkeypatch.setattr(module, name, count)

    root = pictures(tmp_path / "data")
    suite = tmp_path / "suite.py"
    suite.write_text(
        f"""import ml_collections

def get_config():
    spec = {{x: f"folder:{root}/{{x}}" for x in ("train", "val")}}
    settings = {dict(x.split("=") for x in HEADS)}
    linear = {{"task": "linear", **spec, "tests": {{"again": spec["val"]}}}}
    return ml_collections.ConfigDict({{
        "set": {dict(x.split("=") for x in SIZES)},
        "tasks": {{
            "near": {{"task": "knn", **spec, "set": {{"neighbors": 1}}}},
            "heads": linear | {{"set": settings | {{"augment": False}}}},
        }},
    }})
"""
    )
    given = ["evaluate", "all", f"--config={suite}", f"--weights={weights}"]

    def run(out):
        assert command.main([*given, f"--out={tmp_path / out}"]) == 0
        folders = [tmp_path / out / name for name in ("near", "heads")]
        texts = [(folder / "results.json").read_text() for folder in folders]
        return [json.loads(text)["metrics"] for text in texts]

    counted(sources, "open_source")
    counted(fingerprint, "of")
    before = run("out")
    assert calls == {"open_source": 2, "of": 2}  # by two tasks that read three sets
    assert run("out") == before
    assert capsys.readouterr().err.count("is there already\n") >= 2
    blackened(root)
    after = run("out")
    assert "differs in fingerprints.train; evaluated again" in capsys.readouterr().err
    assert after == run("fresh")
    assert after[0] != before[0]
