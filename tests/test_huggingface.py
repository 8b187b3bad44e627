"""The tables of Hugging Face's transformers, alone and against its own models."""

import ml_dtypes
import numpy as np
import peers
import pytest

from dinov2_jax.convert import check, export, huggingface

WIDEST = 2e-5  # of features near 1: float32 sums in another order, seen 2e-6


@pytest.mark.parametrize("registers, ffn", peers.KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensors_come_back_bit_for_bit(registers, ffn, dtype):
    state = peers.official(peers.model(registers, ffn))
    state = {name: value.astype(dtype) for name, value in state.items()}
    theirs = huggingface.from_official(state)
    assert huggingface.recognises(theirs) and not huggingface.recognises(state)
    again = huggingface.to_official(theirs)
    assert set(again) == set(state)
    assert all(check.same(again[name], state[name]) for name in state)


@pytest.mark.parametrize("registers, ffn", peers.KINDS)
def test_query_key_and_value_hold_every_number_once(registers, ffn):
    state = peers.official(peers.model(registers, ffn))
    theirs = huggingface.from_official(state)
    assert sum(v.size for v in theirs.values()) == sum(v.size for v in state.values())
    # qkv is one tensor there and three here, as weight and as bias.
    assert len(theirs) == len(state) + 2 * 2 * 4


def test_names_of_version_5_are_read():
    state = peers.official(peers.model(4, "swiglu"))
    newer = {}
    for name, value in huggingface.from_official(state).items():
        for new, old in huggingface.NEWER.items():
            name = name.replace(f".{old}.", f".{new}.")
        if "weights_in" in name:
            gate, up = np.split(value, 2)
            newer[name.replace("weights_in", "gate_proj")] = gate
            newer[name.replace("weights_in", "up_proj")] = up
        else:
            newer[name] = value
    assert "encoder.layer.0.attention.q_proj.weight" in newer
    again = huggingface.to_official(newer)
    assert all(check.same(again[name], state[name]) for name in state)


def test_missing_and_unexpected_tensors_are_listed():
    theirs = huggingface.from_official(peers.official(peers.model()))
    value = theirs.pop("encoder.layer.2.norm1.bias")
    theirs["classifier.weight"] = value
    with pytest.raises(ValueError, match=r"missing encoder\.layer\.2\.norm1\.bias;"):
        huggingface.to_official(theirs)
    with pytest.raises(ValueError, match=r"unexpected classifier\.weight"):
        huggingface.to_official(theirs)
    state = peers.official(peers.model())
    del state["mask_token"]
    with pytest.raises(ValueError, match="missing mask_token"):
        huggingface.from_official(state)


def test_a_far_block_number_costs_no_more_than_its_name():
    theirs = huggingface.from_official(peers.official(peers.model()))
    theirs["encoder.layer.99999999999.norm1.bias"] = np.zeros(48, np.float32)
    with pytest.raises(ValueError, match=r"unexpected encoder\.layer\.9999"):
        huggingface.to_official(theirs)


def test_parts_of_differing_shapes_are_an_error():
    theirs = huggingface.from_official(peers.official(peers.model()))
    name = "encoder.layer.1.attention.attention.key.weight"
    theirs[name] = theirs[name][:-1]
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.weight have shapes"):
        huggingface.to_official(theirs)


@pytest.mark.parametrize("registers, ffn", peers.KINDS)
def test_a_config_says_what_made_it(registers, ffn):
    told = export.about(peers.model(registers, ffn, patch_size=7, image_size=35))
    found = huggingface.about(huggingface.config(told))
    assert found == {key: told[key] for key in found}
    assert {"heads", "antialias", "offset", "qkv_bias", "mlp_ratio"} <= set(found)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "vit"}, "model_type 'vit'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_act": "relu"}, "relu"),
        ({"image_size": [70, 56, 3]}, r"\[70, 56, 3\]"),
    ],
)
def test_a_config_of_something_else_is_refused(change, message):
    config = huggingface.config(export.about(peers.model())) | change
    with pytest.raises(ValueError, match=message):
        huggingface.about(config)


def test_a_ratio_that_their_config_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        huggingface.config(export.about(peers.model(mlp_ratio=2.5)))


@pytest.mark.torch
@pytest.mark.parametrize("registers, ffn", peers.TWO)
def test_automodel_loads_strictly_and_gives_our_features(registers, ffn, tmp_path):
    peers.package("transformers")
    model = peers.model(registers, ffn)
    params = peers.params(model)
    folder, told = tmp_path / "model", export.about(model)
    export.write_huggingface(folder, peers.official(model), told)
    stacks = check.images([(70, 70), (56, 98)], 3)
    found, ran = check.features("huggingface", folder, model, params, told, stacks)
    assert ran.startswith("transformers")
    for difference in found:
        assert max(difference.cls, difference.patches) < WIDEST


@pytest.mark.torch
def test_what_their_model_saves_is_read_again(tmp_path):
    transformers = peers.package("transformers")
    model = peers.model(4, "swiglu")
    state = peers.official(model)
    export.write_huggingface(tmp_path / "model", state, export.about(model))
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "model")
    theirs.save_pretrained(tmp_path / "saved")
    equal = check.tensors("huggingface", tmp_path / "saved", state, {})
    assert (equal.total, equal.lost) == (len(state), [])


@pytest.mark.torch
def test_autoimageprocessor_is_the_official_evaluation_transform(tmp_path):
    transformers = peers.package("transformers")
    transforms = peers.package("torchvision.transforms")
    from PIL import Image

    model = peers.model(image_size=224)
    export.write_huggingface(tmp_path / "m", peers.official(model), export.about(model))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8)
    image = Image.fromarray(pixels).resize((375, 300), Image.Resampling.BICUBIC)
    official = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(image).numpy()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")
    found = processor(image, return_tensors="np")["pixel_values"][0]
    # Two bicubic resizes that round to whole levels, one of them after each axis.
    assert np.abs(found - official).max() < 2.5 / 255 / 0.224
    assert np.abs(found - official).mean() < 0.2 / 255 / 0.224
