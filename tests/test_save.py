"""Weights written from Python: every format gives back the model that it came from."""

import json

import jax
import numpy as np
import peers
import pytest

import dinov2_jax
from dinov2_jax import zoo
from dinov2_jax.__main__ import main
from dinov2_jax.convert import check, export, huggingface, onnx, read, stablehlo
from dinov2_jax.convert import peers as others
from dinov2_jax.convert import save as saving
from dinov2_jax.models import vit

NAMES = {
    "safetensors": "a.safetensors",
    "timm": "timm.safetensors",
    "huggingface": "folder",
    "official": "a.pth",
    "onnx": "a.onnx",
    "stablehlo": "program",
}
TORCH = ("official", "onnx")
"""Formats that other packages write."""

ODD = {
    "width": 32,
    "heads": 4,
    "depth": 2,
    "patch_size": 4,
    "image_size": 16,
    "offset": 0.3,
    "antialias": True,
}
PLAIN = {"layerscale": None, "qkv_bias": False, "proj_bias": False, "ffn_bias": False}
"""What official files and programs alone can hold."""

CASES = [
    (kind, changes)
    for kind in NAMES
    for changes in (
        {"registers": 2, "ffn": "swiglu"},
        {"registers": 0, "ffn": "mlp", "qkv_bias": False},
        {"registers": 2, "ffn": "swiglu", "image_size": (8, 16), **PLAIN},
        {"registers": 0, "ffn": "mlp", "mlp_ratio": 3.0, "image_size": (8, 16)},
    )
    if not (kind in ("timm", "huggingface") and "layerscale" in changes)
    and not (kind in saving.SQUARE and "image_size" in changes)
] + [("official", {"registers": 1, "ffn": "mlp", **PLAIN})]


def marked(kind: str, changes: dict):
    """The case, for where its package is installed."""
    marks = [pytest.mark.torch] if kind in TORCH else []
    return pytest.param(kind, changes, marks=marks)


def drawn(model: vit.ViT) -> dict:
    """Random parameters."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
    return jax.tree.map(draw, vit.shapes(model))


def features_of(kind: str, path, images) -> tuple:
    """cls and patch features of a file, by what the file itself tells."""
    if kind == "onnx":
        return onnx.run(path, images)
    if kind == "stablehlo":
        return stablehlo.run(path, images)
    return check.ours(*zoo.load_backbone(None, path), images)


@pytest.mark.parametrize("kind, changes", [marked(*case) for case in CASES])
def test_an_odd_architecture_comes_back_from_every_format(
    kind, changes, tmp_path, capsys
):
    if kind in TORCH:
        peers.package({"official": "torch", "onnx": "onnxruntime"}[kind])
    model = peers.model(**(ODD | changes))
    params, path = drawn(model), tmp_path / NAMES[kind]
    dinov2_jax.save(model, params, path, kind)
    capsys.readouterr()
    own = model.image_size
    sizes = [own] if kind in saving.PROGRAMS else [own, 24]
    for size in sizes:
        size = size if isinstance(size, tuple) else (size, size)
        (images,) = check.images([size], 3)
        found = features_of(kind, path, images)
        for a, b in zip(found, check.ours(model, params, images)):
            # The same program on the same tensors; others add in another order.
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert "guess" not in capsys.readouterr().err
    if kind not in saving.PROGRAMS:
        again, _ = zoo.load_backbone(None, path)
        assert (again.heads, again.offset, again.antialias) == (4, 0.3, True)
        assert again.image_size == own


@pytest.mark.parametrize("kind", ["safetensors", "timm", "huggingface", "stablehlo"])
def test_a_model_is_saved_on_another_position_grid(kind, tmp_path):
    model = peers.model(**ODD)
    params, path = drawn(model), tmp_path / NAMES[kind]
    dinov2_jax.save(model, params, path, kind, image_size=24)
    (images,) = check.images([(24, 24)], 3)
    for a, b in zip(features_of(kind, path, images), check.ours(model, params, images)):
        # The table is resized in float64 here, in float32 there.
        np.testing.assert_allclose(a, b, atol=2e-5)
    if kind == "huggingface":
        processor = json.loads((path / "preprocessor_config.json").read_text())
        assert processor["crop_size"] == {"height": 24, "width": 24}
        assert processor["size"] == {"shortest_edge": 27}


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kind", ["huggingface", "timm", "safetensors", "stablehlo"])
def test_other_channels_get_no_means_of_three(kind, channels, tmp_path, capsys):
    model = peers.model(**ODD, in_channels=channels)
    params, path = drawn(model), tmp_path / NAMES[kind]
    dinov2_jax.save(model, params, path, kind)
    told = capsys.readouterr().err
    if kind == "huggingface":
        assert f"no image processor: mean and standard deviation of its {channels}" in (
            told
        )
        assert not (path / "preprocessor_config.json").exists()
        assert (
            json.loads((path / "config.json").read_text())["num_channels"] == channels
        )
    elif kind == "stablehlo":
        images = json.loads((path / "about.json").read_text())["images"]
        assert "mean" not in images and images["shape"][-1] == channels
    (images,) = check.images([(16, 16)], channels)
    for a, b in zip(features_of(kind, path, images), check.ours(model, params, images)):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["huggingface", "timm"])
def test_their_libraries_load_other_channels(kind, channels, tmp_path):
    peers.all_of_them()
    model = peers.model(**ODD, in_channels=channels)
    params, path = drawn(model), tmp_path / NAMES[kind]
    dinov2_jax.save(model, params, path, kind)
    about, _ = check.architecture(kind, path)
    images = check.images([(16, 16)], channels)
    (found,), _ = check.features(kind, path, model, params, about, images)
    assert found.within(1e-5)


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    model = peers.model(**ODD)
    params, path = drawn(model), tmp_path / "a"
    bad = params | {"cls_token": np.full_like(params["cls_token"], np.nan)}
    wide = {"image_size": (8, 16)}
    for weights, how, words in (
        (
            params,
            {"format": "pytorch"},
            "format='pytorch'; choose one of official, hug",
        ),
        (params, {"chunks": 2}, "chunks=2 is not for format='safetensors'"),
        (params, {"format": "timm", "batch": 2}, "batch=2 is not for format='timm'"),
        (params, {"dynamic": True}, "dynamic=True is not for"),
        (params, {"image_size": 18}, "18x18 is not a multiple of the patch, 4"),
        (params, {"format": "huggingface"} | wide, "8x16 has no huggingface form"),
        (params, {"format": "official"} | wide, "8x16 has no official form"),
        ({"params": params}, {}, r"parameters are not the model's, .*load_backbone"),
        (bad, {}, "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            dinov2_jax.save(model, weights, path, **how)
    assert not list(tmp_path.iterdir())
    path.write_text("precious")
    with pytest.raises(ValueError, match="a exists; choose another name"):
        dinov2_jax.save(model, params, path)
    assert path.read_text() == "precious"


def test_an_architecture_that_is_not_told_is_not_written(tmp_path, monkeypatch):
    # Width 384 is a released one, whose 6 heads would be guessed on both sides.
    model = peers.model(**(ODD | {"width": 384, "heads": 4, "depth": 1}))
    params, about = drawn(model), export.about
    monkeypatch.setattr(
        export, "about", lambda m: {k: v for k, v in about(m).items() if k != "heads"}
    )
    state = saving.names.backbone_to_official(params, 4)
    export.write_safetensors(tmp_path / "a", state, export.about(model))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="does not give back heads"):
        check.written("safetensors", tmp_path / "a", model, params, state)
    assert read.read_weights(tmp_path / "a").guess


def test_a_torchvision_that_does_not_load_ends_in_a_line(tmp_path, monkeypatch, capsys):
    class Broken:
        """As transformers, whose classes import torchvision when first looked at."""

        __version__ = "0"

        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    model, source = peers.model(**ODD), tmp_path / "a.safetensors"
    dinov2_jax.save(model, drawn(model), source)
    monkeypatch.setattr(others, "_package", lambda *_: Broken())
    command = ["convert", f"--from={source}", "--to=huggingface", f"{tmp_path / 'b'}"]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "AutoModel of transformers cannot be imported (operator torchvision" in told
    assert "--no-check" in told and not (tmp_path / "b").exists()
    with pytest.raises(others.Absent):
        others.huggingface(tmp_path, export.about(model), [])


@pytest.mark.torch
def test_a_model_that_no_other_package_runs_needs_no_check(tmp_path, capsys):
    peers.all_of_them()
    model, source = peers.model(2, **(ODD | PLAIN)), tmp_path / "a.safetensors"
    dinov2_jax.save(model, drawn(model), source)
    command = ["convert", f"--from={source}", "--to=official", f"{tmp_path / 'b.pth'}"]
    assert main(command) == 1
    assert "no package runs registers in such a model" in capsys.readouterr().err
    assert main([*command, "--no-check"]) == 0
    assert zoo.load_backbone(None, tmp_path / "b.pth")[0].heads == 4


@pytest.mark.torch
def test_convert_writes_one_onnx_file_for_all_sizes(tmp_path, capsys):
    peers.package("onnxruntime", "onnx")
    model, source = peers.model(**ODD), tmp_path / "a.safetensors"
    dinov2_jax.save(model, drawn(model), source)
    out = tmp_path / "a.onnx"
    command = ["convert", f"--from={source}", "--to=onnx", str(out), "--dynamic"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for size in ("16x16", "24x20", "8x16"):
        assert f"checked  2 images of {size} pixels by onnxruntime" in shown


def test_the_processor_crops_to_the_table(tmp_path):
    for side, edge in ((224, 256), (518, 592)):
        processor = huggingface.processor({"image_size": side})
        assert processor["crop_size"] == {"height": side, "width": side}
        assert processor["size"] == {"shortest_edge": edge}
