"""Linear heads learn the same on any number of devices."""

import functools
import json

import jax
import numpy as np
import peers
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax import sharding
from dinov2_jax.cli import evaluate_linear, evaluate_video
from dinov2_jax.convert import export, names


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The command line of a short training on noise in three shades, without --out."""
    home, rng = tmp_path_factory.mktemp("linear"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 30)):
        for i in range(count):
            path = home / split / f"shade{i % 3}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 200, (32, 32, 3)) + 20 * (i % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    export.write_safetensors(home / "model.safetensors", state, export.about(built))
    given = ["evaluate", "linear", f"--weights={home / 'model.safetensors'}"]
    given += [f"--{x}=folder:{home / x}" for x in ("train", "val")]
    given += [f"--cache={home / 'features'}"]
    sizes = ("resize=32", "crop=32", "batch_size=24", "blocks=1", "rates=0.1,8.0")
    steps = ("train_batch=20", "steps=8", "save_every=4", "log_every=99")
    return given + [f"--set={x}" for x in (*sizes, *steps)]


@pytest.mark.parametrize("augment", ["true", "false"])
def test_heads_do_not_depend_on_the_number_of_devices(
    augment, task, tmp_path, monkeypatch
):
    heads, metrics = [], []
    make = sharding.make_mesh
    for number in (1, 3, 8):  # 20 images are no multiple of 3 or 8
        devices = functools.partial(make, devices=jax.devices()[:number])
        monkeypatch.setattr(sharding, "make_mesh", devices)
        out = tmp_path / str(number)
        assert command.main([*task, f"--out={out}", f"--set=augment={augment}"]) == 0
        metrics.append(json.loads((out / "results.json").read_text())["metrics"])
        with np.load(out / "head.npz") as head:
            heads.append({name: head[name] for name in head.files})
    for other, told in zip(heads[1:], metrics[1:]):
        assert told == metrics[0]
        assert np.abs(heads[0]["bias"]).max() > 1e-3  # it starts at 0
        for name in ("kernel", "bias"):  # float32 sums in another order, eight steps
            np.testing.assert_allclose(
                other[name], heads[0][name], rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("kind", [evaluate_linear, evaluate_video])
def test_the_default_batch_is_that_of_the_paper(kind):
    # 1,250 steps of 8 x 128 images are an epoch of ImageNet-1k.
    assert kind.SETTINGS["train_batch"] == 1024
