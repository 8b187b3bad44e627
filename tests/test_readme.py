"""What the README tells people to type, as it stands there."""

import pathlib
import re
import runpy
import shlex

import arrays
import jax
import numpy as np
import peers
import pytest
import test_run
from PIL import Image

import dinov2_jax
from dinov2_jax import __main__ as command
from dinov2_jax import zoo
from dinov2_jax.convert import names

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def run(code: str, folder: pathlib.Path, known: dict) -> dict:
    """The names that a piece of Python knows at its end."""
    (folder / "block.py").write_text(code)
    return runpy.run_path(str(folder / "block.py"), known)


straight = test_run.straight  # the fixture: a finished run


def block(language: str, word: str) -> str:
    """The one code block of a language that holds a word."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (text,) = [text for text in found if word in text]
    return text


def test_released_weights_are_used_in_five_lines(tmp_path, monkeypatch):
    released = zoo.RELEASED["dinov2_vits14_reg"]
    built = zoo.module(released.about())
    state = names.backbone_to_official(peers.params(built), 14)
    arrays.write_torch(tmp_path / released.url.rpartition("/")[2], state)
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path))  # as if downloaded before
    images = np.random.default_rng(0).normal(size=(2, 56, 70, 3)).astype(np.float32)
    known = {"images": images}
    known = run(block("python", "load_backbone"), tmp_path, known)
    features = known["features"]
    shapes = [x.shape for x in (features.cls, features.registers, features.patches)]
    assert shapes == [(2, 384), (2, 4, 384), (2, 20, 384)]
    want = built.apply({"params": known["params"]}, images)
    # jitted and not: products in another order, over twelve blocks
    np.testing.assert_allclose(features.cls, want.cls, rtol=1e-3, atol=1e-3)


@pytest.mark.torch
def test_trained_weights_are_used_in_pytorch_in_five_lines(
    straight, tmp_path, monkeypatch
):
    peers.package("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(straight)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save("cat.jpg")
    line = block("sh", "dinov2-jax convert").strip()
    program, *given = shlex.split(line)
    assert program == "dinov2-jax" and command.main(given) == 0
    known = run(block("python", "transformers"), tmp_path, {})
    tokens = known["tokens"].numpy()
    inputs = known["processor"](Image.open("cat.jpg"), return_tensors="np")
    images = np.asarray(inputs["pixel_values"]).transpose(0, 2, 3, 1)
    # Crops are of the position table's size, where transformers resizes nothing.
    assert tokens.shape == (1, 1 + (images.shape[1] // 4) ** 2, 32)
    model, params = dinov2_jax.load_backbone(None, straight)
    ours = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(tokens[:, 0], ours.cls, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(docs/[\w./-]+)`", README))))
def test_every_page_that_is_named_is_there(path):
    assert (pathlib.Path(__file__).parents[1] / path).exists()
