"""Backbones inside other models' files: under a prefix, beside a head, twice, averaged."""

import json

import arrays
import numpy as np
import peers
import pytest

from dinov2_jax import zoo
from dinov2_jax.convert import check, export, huggingface, read, timm
from dinov2_jax.models import vit


def narrow(registers: int = 0, ffn: str = "mlp", **changes) -> vit.ViT:
    """A backbone whose width tells no number of heads."""
    sizes = {"width": 32, "heads": 2, "depth": 2, "patch_size": 4, "image_size": 16}
    return peers.model(registers, ffn, **(sizes | changes))


def official(seed: int = 0, **changes) -> dict[str, np.ndarray]:
    """Its official state dict."""
    return peers.official(narrow(**changes), seed)


def under(prefix: str, state: dict) -> dict:
    """The state dict with a prefix before each name."""
    return {prefix + name: value for name, value in state.items()}


def same(found: dict, expected: dict) -> bool:
    """Whether two state dicts hold the same bits under the same names."""
    return set(found) == set(expected) and all(
        check.same(found[name], expected[name]) for name in expected
    )


def zeros(*names: str) -> dict[str, np.ndarray]:
    """Tensors of a head, of which only the names matter."""
    return {name: np.zeros(3, np.float32) for name in names}


HEAD = ("weight", "bias")
PLACES = {
    "model.": lambda s: under("model.", s),
    "encoder.": lambda s: under("encoder.", s) | zeros("projector.0.weight"),
    "model.backbone.": lambda s: {
        "state_dict": under("model.backbone.", s) | zeros("model.neck.0.weight"),
        "pytorch-lightning_version": "2.5",
        "optimizer_states": [],
    },
    "module.": lambda s: {"model": under("module.", s), "epoch": 3},
    "pretrained.": lambda s: under("pretrained.", s) | zeros("depth_head.a.weight"),
    "backbone. beside a linear head": lambda s: (
        under("backbone.", s) | zeros("linear_head.weight", "linear_head.bias")
    ),
    "backbone. of a depther": lambda s: {
        "meta": {"epoch": 1},
        "state_dict": under("backbone.", s) | zeros("decode_head.conv_depth.weight"),
    },
    "nested prefixes": lambda s: {"net": {"params": under("a.b.c.", s)}},
    "a head at the same place": lambda s: s | zeros("head.weight", "head.bias"),
    "DeepSpeed": lambda s: {"module": under("student_model.vit.", s), "dp_world": 8},
    "torch's average of weights": lambda s: (
        under("module.", s) | {"n_averaged": np.array(7)}
    ),
    "another encoder beside": lambda s: (
        under("dino.", s) | under("mae.", s) | zeros("mae.decoder_embed.weight")
    ),
    "torch.compile": lambda s: under("_orig_mod.backbone.", s),
}
"""How a training script keeps a backbone."""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["official", "timm", "huggingface"])
def test_a_backbone_is_read_wherever_it_stands(tmp_path, place, form):
    state = official(4, registers=4, ffn="swiglu")
    theirs = {"timm": timm.from_official, "huggingface": huggingface.from_official}
    given = theirs[form](state) if form in theirs else state
    path = arrays.write_torch(tmp_path / "a.pth", PLACES[place](given))
    which = "student" if place == "DeepSpeed" else "teacher"
    found = read.read_weights(path, which, heads=2)
    expected = timm.to_official(given) if form == "timm" else state
    assert same(found.backbone, expected)
    assert found.about["heads"] == 2 and not found.guess


def test_what_stands_beside_it_is_told(tmp_path):
    state = official()
    inside = under("backbone.", state) | zeros(
        "decode_head.a", "decode_head.b", "scale"
    )
    path = arrays.write_torch(tmp_path / "a.pth", {"state_dict": inside})
    lines = read.read_weights(path).lines
    assert lines == (
        "took the backbone under the prefix 'backbone.'",
        "left out 3 tensors beside the backbone: decode_head.* (2), scale",
    )
    lines = read.read_weights(
        arrays.write_torch(path, state | zeros("head.fc.weight", "head.fc.bias"))
    ).lines
    assert lines == ("left out 2 tensors beside the backbone: head.* (2)",)
    assert read.read_weights(arrays.write_torch(path, state)).lines == ()


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("student", "teacher"),
        ("model_state", "ema_state"),
        ("encoder", "target_encoder"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_of_two_the_average_is_the_teacher_and_it_is_told(
    tmp_path, plain, average, flat
):
    states = {plain: official(1), average: official(2)}
    content = {**states, "epoch": 1}
    if flat:
        content = {
            k: v for key, s in states.items() for k, v in under(f"{key}.", s).items()
        }
    path = arrays.write_torch(tmp_path / "a.pth", content)
    for which, key in (("teacher", average), ("student", plain)):
        found = read.read_weights(path, which)
        assert same(found.backbone, states[key])
        assert f"took the backbone under '{key}.', not that under" in found.lines[0]
        by_name = read.read_weights(path, prefix=key)
        assert same(by_name.backbone, states[key])


def test_several_without_an_order_need_a_prefix(tmp_path):
    states = {"left.": official(1), "right.": official(2)}
    both = under("left.", states["left."]) | under("right.", states["right."])
    path = arrays.write_torch(tmp_path / "a.pth", {"state_dict": both})
    with pytest.raises(
        ValueError,
        match=r"2 backbones, under the prefixes 'state_dict\.left\.', .*--pre",
    ):
        read.read_weights(path)
    for prefix, key in (
        ("left", "left."),
        ("right.", "right."),
        ("state_dict.right", "right."),
        ("module.left", "left."),
    ):
        assert same(read.read_weights(path, prefix=prefix).backbone, states[key])
    with pytest.raises(
        ValueError, match=r"prefix='middle': no backbone stands there, "
    ):
        read.read_weights(path, prefix="middle")


def test_a_mask_token_that_is_missing_is_zeros_and_that_is_told(tmp_path):
    state = official()
    theirs = huggingface.from_official(state)
    del theirs["embeddings.mask_token"]
    config = huggingface.config(export.about(narrow())) | {"use_mask_token": False}
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    export.write_safetensors(tmp_path / "hub" / "model.safetensors", theirs, {})
    found = read.read_weights(tmp_path / "hub")
    state["mask_token"] = np.zeros_like(state["mask_token"])
    assert same(found.backbone, state) and found.about["heads"] == 2
    assert "no mask token" in found.lines[0]


def test_shards_of_pytorch_files_are_read_by_their_index(tmp_path):
    state, folder = official(), tmp_path
    theirs = huggingface.from_official(state)
    places = {n: f"pytorch_model-{i % 2 + 1}.bin" for i, n in enumerate(theirs)}
    for file in set(places.values()):
        part = {n: v for n, v in theirs.items() if places[n] == file}
        arrays.write_torch(folder / file, part)
    config = huggingface.config(export.about(narrow()))
    (folder / "config.json").write_text(json.dumps(config))
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert same(read.read_weights(folder).backbone, state)
    index.write_text(json.dumps({"weight_map": places | {"a": "pytorch_model-3.bin"}}))
    with pytest.raises(ValueError, match=r"model-3\.bin is missing"):
        read.read_weights(folder)


@pytest.mark.parametrize("form", ["DINO v1", "iBOT", "a DINO v1 run"])
def test_backbones_without_layerscale_are_plain_vits(tmp_path, form):
    built = narrow(layerscale=None)
    state = peers.official(built)
    token = state.pop("mask_token")
    given, expected = dict(state), state | {"mask_token": np.zeros_like(token)}
    if form == "iBOT":
        given["masked_embed"], expected["mask_token"] = token, token
    if form == "a DINO v1 run":
        head = zeros("head.mlp.0.weight", "head.last_layer.weight_g")
        given = {
            "student": under("module.backbone.", official(9, layerscale=None)),
            "teacher": under("backbone.", given) | head,
            "args": {"arch": "vit_small"},
        }
    found = read.read_weights(arrays.write_torch(tmp_path / "a.pth", given), heads=2)
    assert same(found.backbone, expected)
    assert zoo.module(found.about) == built
    assert "no LayerScale: a plain ViT" in found.lines[-1]


def test_a_norm_behind_the_mean_is_read_as_the_final_norm(tmp_path):
    state = timm.from_official(official())
    state |= {f"fc_norm.{k}": state.pop(f"norm.{k}") for k in HEAD}
    state |= zeros("head.weight", "head.bias")
    found = read.read_weights(arrays.write_torch(tmp_path / "a.pth", state))
    assert check.same(found.backbone["norm.weight"], state["fc_norm.weight"])
    assert any("fc_norm" in line and "each token" in line for line in found.lines)
    assert "left out 2 tensors beside the backbone: head.* (2)" in found.lines


def test_a_table_that_is_not_square_needs_its_rows_and_columns_told(tmp_path):
    built = narrow(4, image_size=(8, 12))
    assert built.table_grid == (2, 3)
    state = peers.official(built)
    path = arrays.write_torch(tmp_path / "a.pth", state)
    with pytest.raises(ValueError, match=r"7 entries.*--image-size=ROWSxCOLUMNS"):
        zoo.load_backbone(None, path, heads=2)
    module, params = zoo.load_backbone(None, path, heads=2, image_size=(8, 12))
    assert module == built
    np.testing.assert_array_equal(params["pos_embed"], state["pos_embed"])
    export.write_safetensors(tmp_path / "b", state, export.about(built))
    module, _ = zoo.load_backbone(None, tmp_path / "b")
    assert module == built
    module, params = zoo.load_backbone(None, tmp_path / "b", image_size=16)
    assert module.table_grid == (4, 4) and params["pos_embed"].shape[1] == 17


BROKEN = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_weights_with_nan_or_infinity_are_refused_by_name(tmp_path, value, dtype):
    kind = np.dtype(dtype) if dtype != "bfloat16" else arrays.ml_dtypes.bfloat16
    state = {n: v.astype(kind) for n, v in official().items()}
    state["blocks.1.mlp.fc2.weight"] = state["blocks.1.mlp.fc2.weight"].copy()
    state["blocks.1.mlp.fc2.weight"][-1, -1] = value
    written = (
        arrays.write_torch(tmp_path / "a.pth", state),
        arrays.write_torch(tmp_path / "b.pth", timm.from_official(state)),
        tmp_path / "c",
        tmp_path / "hub",
    )
    export.write_safetensors(written[2], state, {})
    export.write_huggingface(written[3], state, export.about(narrow()))
    for path in written:
        with pytest.raises(
            ValueError,
            match=r"1 of 3. tensors hold NaN.*: blocks\.1\.mlp\.fc2\.weight\.",
        ) as error:
            read.read_weights(path, heads=2)
        assert str(path) in str(error.value)


def test_heads_beside_a_backbone_are_looked_through_too(tmp_path):
    head = {"dino_head.mlp.bias": np.full(3, np.nan, np.float32)}
    whole = {"teacher": under("backbone.", official()) | head}
    path = arrays.write_torch(tmp_path / "a.pth", whole)
    with pytest.raises(ValueError, match=r"hold NaN.*: dino_head\.mlp\.bias"):
        read.read_weights(path)


def test_what_fits_is_loaded_of_every_form(tmp_path, capsys):
    state = official()
    for form, rename in (
        ("official", dict),
        ("timm", timm.from_official),
        ("huggingface", huggingface.from_official),
    ):
        theirs = rename(state)
        lost = next(n for n in theirs if "norm2.bias" in n and ".1." in n)
        theirs[lost + "_"] = theirs.pop(lost)
        path = arrays.write_torch(tmp_path / f"{form}.pth", theirs)
        with pytest.raises(ValueError, match=r"missing .*norm2\.bias.*--partial"):
            zoo.load_backbone(None, path, heads=2)
        _, params = zoo.load_backbone(None, path, heads=2, partial=True)
        assert not params["blocks"]["norm2"]["bias"][1].any()  # fresh
        np.testing.assert_array_equal(
            params["blocks"]["norm2"]["bias"][0], state["blocks.0.norm2.bias"]
        )
        said = capsys.readouterr().err
        assert "missing 1: blocks.1.norm2.bias" in said and lost + "_" in said
