"""The tables of timm, alone and against its own models."""

import numpy as np
import peers
import pytest

from dinov2_jax.convert import check, export, names, timm
from dinov2_jax.models import vit

WIDEST = 2e-5  # of features near 1: float32 sums in another order, seen 2e-6


@pytest.mark.parametrize("registers, ffn", peers.KINDS)
def test_all_but_the_documented_tensors_come_back_bit_for_bit(registers, ffn):
    state = peers.official(peers.model(registers, ffn))
    theirs = timm.from_official(state)
    assert timm.recognises(theirs) and not timm.recognises(state)
    assert timm.swiglu(theirs) == (ffn == "swiglu")
    again = timm.to_official(theirs)
    assert {name: a.shape for name, a in again.items()} == {
        name: a.shape for name, a in state.items()
    }
    lost = {name for name in state if not check.same(again[name], state[name])}
    assert lost == check.folded("timm", registers)
    assert not again["mask_token"].any()


def test_folding_the_cls_position_keeps_features_to_the_bit():
    model = peers.model(4)
    params = peers.params(model)
    state = timm.to_official(timm.from_official(peers.official(model)))
    again = names.backbone_from_official(state, params)
    assert not np.array_equal(again["cls_token"], params["cls_token"])
    (images,) = check.images([(56, 84)], 3)
    for a, b in zip(
        check.ours(model, params, images), check.ours(model, again, images)
    ):
        np.testing.assert_array_equal(a, b)


def test_the_folded_sum_is_not_rounded_to_half_precision():
    state = peers.official(peers.model(4))
    half = {name: value.astype(np.float16) for name, value in state.items()}
    theirs = timm.from_official(half)
    exact = half["cls_token"].astype("f4") + half["pos_embed"][:, :1].astype("f4")
    assert check.same(theirs["cls_token"], exact)
    again = timm.to_official(theirs)
    assert {again[n].dtype for n in again if n != "cls_token"} == {np.dtype("f2")}


def test_missing_and_unexpected_tensors_are_listed():
    theirs = timm.from_official(peers.official(peers.model()))
    theirs["head.weight"] = theirs.pop("blocks.3.ls2.gamma")
    with pytest.raises(
        ValueError, match=r"missing blocks\.3\.ls2\.gamma; .*head\.weig"
    ):
        timm.to_official(theirs)
    state = peers.official(peers.model(layerscale=None))
    with pytest.raises(ValueError, match=r"missing blocks\.0\.ls1\.gamma"):
        timm.from_official(state)


@pytest.mark.parametrize("letter, name", timm.NAMES.items())
@pytest.mark.parametrize("registers", [0, 4])
def test_released_sizes_are_timms_models_as_they_are(letter, name, registers):
    model = vit.build(f"{letter}/14", registers=registers)
    middle = "reg4_" if registers else ""
    expected = f"vit_{name}_patch14_{middle}dinov2"
    assert timm.model(export.about(model)) == (expected, {})


@pytest.mark.torch
@pytest.mark.parametrize(
    "registers, ffn, ending",
    [(*kind, "safetensors") for kind in peers.TWO] + [(2, "mlp", "pth")],
)
def test_create_model_loads_strictly_and_gives_our_features(
    registers, ffn, ending, tmp_path
):
    peers.package("timm")
    model = peers.model(registers, ffn)
    params, told = peers.params(model), export.about(model)
    path = tmp_path / f"model.{ending}"
    export.write_timm(path, peers.official(model), told)
    stacks = check.images([(70, 70), (56, 98)], 3)
    found, ran = check.features("timm", path, model, params, told, stacks)
    assert ran.startswith("timm")
    for difference in found:
        assert max(difference.cls, difference.patches) < WIDEST


@pytest.mark.torch
def test_timm_folds_an_official_file_as_we_do():
    torch = peers.package("torch", "torch")
    package = peers.package("timm.models.vision_transformer")
    state = peers.official(peers.model(4, "swiglu"))
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    theirs = package._convert_dinov2(tensors, None)
    ours = timm.from_official(state)
    assert set(theirs) == set(ours)
    for name, value in ours.items():
        np.testing.assert_array_equal(theirs[name].numpy(), value)
