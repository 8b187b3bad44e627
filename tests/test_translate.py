"""Backbones that other libraries build otherwise, read into the same features."""

import json

import arrays
import numpy as np
import peers
import pytest

from dinov2_jax import zoo
from dinov2_jax.convert import check, export, huggingface, read, timm
from dinov2_jax.models import vit

SIZES = {"width": 32, "heads": 2, "depth": 2, "patch_size": 4, "image_size": 16}
TINY = {"embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 0}


def official(seed: int = 0, registers: int = 0, ffn: str = "mlp") -> dict:
    """The state dict of a small backbone that does not tell its heads."""
    return peers.official(peers.model(registers, ffn, **SIZES), seed)


BUILT = {
    "a giant's own ratio": ("vit_giant_patch14_dinov2", {}, 85),
    "a giant with registers": ("vit_giant_patch14_reg4_dinov2", {}, 85),
    "a ratio of 5.3375": ("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 5.3375}, 85),
    "an odd width": ("vit_giant_patch14_dinov2", {"mlp_ratio": 2.5}, 40),
    "positions of registers": (
        "vit_small_patch14_reg4_dinov2",
        {"no_embed_class": False},
        None,
    ),
    "eight registers": ("vit_small_patch14_reg4_dinov2", {"reg_tokens": 8}, None),
    "no LayerScale": ("vit_small_patch14_reg4_dinov2", {"init_values": None}, None),
}
"""What is special -> timm's model, its options, hidden units of a SwiGLU."""


@pytest.mark.torch
@pytest.mark.parametrize("what", BUILT)
def test_variants_that_timm_builds_give_the_same_features(tmp_path, capsys, what):
    torch, package = peers.package("torch", "torch"), peers.package("timm")
    name, options, hidden = BUILT[what]
    options = {"img_size": 42, "dynamic_img_size": True, **TINY, **options}
    model = package.create_model(name, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # LayerScale and biases too, of which many begin as 0
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    state = {n: v.numpy() for n, v in model.state_dict().items()}
    path = arrays.write_torch(tmp_path / "a.pth", state)
    module, params = zoo.load_backbone(None, path, heads=2)
    padded = f"SwiGLU of {hidden} hidden units is padded with zeros to"
    assert (padded in capsys.readouterr().err) == bool(hidden and hidden % 8)
    # Without registers timm resizes the positions otherwise than the reference.
    sizes = [(42, 42), (70, 28)] if module.registers else [(42, 42)]
    for images in check.images(sizes, 3):
        cls, patches = check.ours(module, params, images)
        with torch.no_grad():
            pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            theirs = model.forward_features(pixels).numpy()
        np.testing.assert_allclose(cls, theirs[:, 0], atol=2e-5)  # float32, seen 3e-6
        theirs = theirs[:, 1 + module.registers :]
        np.testing.assert_allclose(patches, theirs, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_padding_adds_zeros_and_changes_nothing_else(tmp_path, dtype):
    kind = np.dtype(dtype) if dtype != "bfloat16" else arrays.ml_dtypes.bfloat16
    state = {n: v.astype(kind) for n, v in official(ffn="swiglu").items()}
    narrow = dict(state)
    for i, half in ((0, 83), (1, 88)):
        block = f"blocks.{i}.mlp."
        for name in ("w12.weight", "w12.bias"):
            parts = np.split(state[block + name], 2)
            narrow[block + name] = np.concatenate([part[:half] for part in parts])
            wide = [part.copy() for part in parts]
            for part in wide:
                part[half:] = 0
            state[block + name] = np.concatenate(wide)
        narrow[f"{block}w3.weight"] = state[f"{block}w3.weight"][:, :half].copy()
        state[f"{block}w3.weight"] = state[f"{block}w3.weight"].copy()
        state[f"{block}w3.weight"][:, half:] = 0
    path = arrays.write_torch(tmp_path / "a.pth", narrow)
    found = read.read_weights(path, heads=2).backbone
    assert set(found) == set(state)
    assert all(check.same(found[name], state[name]) for name in state)


def test_a_state_dict_in_a_list_is_read(tmp_path):
    state = official()
    torchfile = arrays.write_torch(tmp_path / "a.pth", [state, {"lr": 0.1}])
    found = read.read_weights(torchfile)
    assert all(check.same(found.backbone[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "key", ["state_dict_EMA", "modelEMA", "EMA", "teacherNet", "model_Ema", "swaModel"]
)
def test_an_average_is_known_however_its_key_is_spelt(tmp_path, key):
    states = {"model": official(1), key: official(2)}
    path = arrays.write_torch(tmp_path / "a.pth", states)
    for which, name in (("teacher", key), ("student", "model")):
        found = read.read_weights(path, which).backbone
        assert all(check.same(found[n], v) for n, v in states[name].items())


def test_a_shard_or_its_index_sends_to_the_folder(tmp_path):
    theirs = huggingface.from_official(official())
    names = list(theirs)
    places = {n: f"model-{1 + (n == names[0])}-of-2.safetensors" for n in names}
    for file in set(places.values()):
        part = {n: theirs[n] for n in names if places[n] == file}
        export.write_safetensors(tmp_path / file, part, {})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for file in (*set(places.values()), index.name):
        with pytest.raises(ValueError, match="give its folder") as error:
            read.read_weights(tmp_path / file)
        assert str(tmp_path / file) in str(error.value)
    assert len(read.read_weights(tmp_path, heads=2).backbone) == len(official())


@pytest.mark.parametrize(
    ("config", "heads", "size"),
    [
        ({"model_args": {"num_heads": 4, "img_size": [8, 12]}}, 4, (8, 12)),
        (
            {
                "architecture": "vit_small_patch14_reg4_dinov2",
                "num_features": 384,
                "model_args": {"img_size": [8, 12], "num_heads": 2},
            },
            2,
            (8, 12),
        ),
    ],
)
def test_the_config_of_a_timm_folder_tells_heads_and_grid(
    tmp_path, config, heads, size
):
    built = peers.model(4, **(SIZES | {"image_size": (8, 12)}))
    state = timm.from_official(peers.official(built))
    export.write_safetensors(tmp_path / "model.safetensors", state, {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read.read_weights(tmp_path)
    assert found.about["heads"] == heads and not found.guess
    assert found.about["image_size"] == size


def test_a_size_that_is_told_decides_whose_the_first_positions_are(tmp_path):
    # 6 entries of a 2x3 grid, or one of cls, 4 of registers and a grid of 1x1.
    built = peers.model(4, **(SIZES | {"image_size": (8, 12)}))
    state = peers.official(built)
    path = arrays.write_torch(tmp_path / "a.pth", timm.from_official(state))
    found = read.read_weights(path, heads=2, image_size=(8, 12))
    table = found.backbone["pos_embed"]
    np.testing.assert_array_equal(table[:, 1:], state["pos_embed"][:, 1:])
    assert not any("first positions" in line for line in found.lines)
    found = read.read_weights(path, heads=2)
    assert found.about["grid"] == 1
    assert any("first positions are taken for" in line for line in found.lines)


@pytest.mark.parametrize("size", ["S", "B", "L", "g"])
def test_the_name_of_a_timm_model_tells_its_heads(size):
    width = vit.VARIANTS[size]["width"]
    config = {"architecture": f"vit_{timm.NAMES[size]}_patch14_dinov2"}
    told = timm.about(config | {"num_features": width})
    assert told == {"heads": vit.VARIANTS[size]["heads"]}
    # A model built in another width has other heads than its name says.
    assert timm.about(config | {"num_features": width + 1}) == {}
    assert timm.about(config | {"model_args": None}) == {}
