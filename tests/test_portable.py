"""ONNX graphs and StableHLO programs, run outside this package."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import peers
import pytest
import safetensors.numpy

from dinov2_jax.convert import check, onnx, stablehlo

WIDEST = 2e-5  # of features near 1: float32 sums in another order, seen 2e-6

WITHOUT_US = """
import sys
sys.modules["dinov2_jax"] = None  # an import of it now fails
import json, numpy as np
images = np.load("images.npy")
exec("\\n".join(json.load(open("about.json"))["call"]))
np.savez("found.npz", **{name: np.asarray(a) for name, a in features.items()})
assert not [name for name in sys.modules if name.startswith(("flax", "dinov2_jax."))]
"""


@pytest.mark.parametrize("batch", [None, 3])
def test_a_stablehlo_folder_needs_nothing_of_ours(batch, tmp_path):
    model = peers.model(4, "swiglu")
    params = peers.params(model)
    folder = tmp_path / "program"
    stablehlo.write(folder, model, params, {"heads": 3}, (56, 84), batch)
    (images,) = check.images([(56, 84)], 3, number=3)
    np.save(folder / "images.npy", images)
    subprocess.run([sys.executable, "-c", WITHOUT_US], cwd=folder, check=True)
    found = np.load(folder / "found.npz")
    expected = model.apply({"params": params}, images)
    for name in ("cls", "registers", "patches"):
        np.testing.assert_allclose(
            found[name], getattr(expected, name), atol=WIDEST, err_msg=name
        )


def test_a_stablehlo_program_says_how_to_call_it(tmp_path):
    model = peers.model()
    stablehlo.write(tmp_path / "p", model, peers.params(model), {"heads": 3}, (70, 70))
    note = json.loads((tmp_path / "p" / "about.json").read_text())
    assert note["images"]["shape"] == ["batch", 70, 70, 3]
    assert {"cpu", "cuda", "tpu"} <= set(note["platforms"])
    assert note["calling_convention_version"] >= 9 and note["about"] == {"heads": 3}
    weights = safetensors.numpy.load_file(tmp_path / "p" / "weights.safetensors")
    assert weights["blocks/attn/qkv/kernel"].shape == (4, 48, 144)
    equal = check.tensors("stablehlo", tmp_path / "p", {}, peers.params(model))
    assert equal.total == len(weights) and not equal.lost


def test_a_program_takes_full_float32_products_with_it():
    model = peers.model()
    weights = stablehlo.leaves(peers.params(model))
    with jax.default_matmul_precision("bfloat16"):  # what a TPU does unless told
        program = stablehlo.program(model, weights, (56, 56), 1)
    text = program.mlir_module()
    assert "HIGHEST" in text and "DEFAULT" not in text


@pytest.mark.torch
@pytest.mark.parametrize("registers, ffn", peers.TWO)
@pytest.mark.parametrize("batch", [None, 2])
def test_onnxruntime_gives_our_features(registers, ffn, batch, tmp_path):
    peers.package("onnxruntime", "onnx")
    model = peers.model(registers, ffn)
    params, path = peers.params(model), tmp_path / "model.onnx"
    for size in ((70, 70), (56, 84)):  # the table's own grid, and a resized one
        onnx.write(path, peers.official(model), model, {}, size, batch)
        images = check.images([size], 3, number=batch or 1)
        (found,), _ = check.features("onnx", path, model, params, {}, images)
        assert max(found.cls, found.patches) < WIDEST


@pytest.mark.torch
def test_an_onnx_file_of_an_open_batch_takes_any_and_gives_registers(tmp_path):
    runtime = peers.package("onnxruntime", "onnx")
    model = peers.model(4)
    params, path = peers.params(model), tmp_path / "model.onnx"
    onnx.write(path, peers.official(model), model, {}, (56, 56))
    session = runtime.InferenceSession(path)
    shapes = {out.name: out.shape for out in session.get_outputs()}
    assert shapes == {
        "cls": ["batch", 48],
        "patches": ["batch", 16, 48],
        "registers": ["batch", 4, 48],
    }
    for number in (1, 5):
        (images,) = check.images([(56, 56)], 3, number)
        given = {"images": images.transpose(0, 3, 1, 2)}
        (registers,) = session.run(["registers"], given)
        expected = model.apply({"params": params}, images).registers
        np.testing.assert_allclose(registers, expected, atol=WIDEST)


@pytest.mark.torch
def test_large_onnx_weights_lie_in_a_file_of_their_own(tmp_path, monkeypatch):
    peers.package("onnxruntime", "onnx")
    monkeypatch.setattr(onnx, "LIMIT", 1000)
    model = peers.model()
    params, path = peers.params(model), tmp_path / "model.onnx"
    state = peers.official(model)
    onnx.write(path, state, model, {}, (56, 56))
    assert {file.name for file in tmp_path.iterdir()} == {
        path.name,
        f"{path.name}.data",
    }
    assert os.path.getsize(path) < 200_000 < os.path.getsize(f"{path}.data")
    equal = check.tensors("onnx", path, state, params)
    assert set(equal.lost) == {"mask_token", "cls_token", "pos_embed"}
    (found,), _ = check.features(
        "onnx", path, model, params, {}, check.images([(56, 56)], 3)
    )
    assert max(found.cls, found.patches) < WIDEST
