"""Released kinds of heads inside whole models' checkpoints."""

import arrays
import jax
import numpy as np
import pytest

from dinov2_jax import zoo
from dinov2_jax.convert import export
from dinov2_jax.models import probes

KINDS = {
    "decode_head.conv_depth": ((256, 16, 1, 1), probes.LinearDepth),
    "decode_head.conv_seg": ((5, 8, 1, 1), probes.LinearSegmentation),
    "linear_head": ((5, 16), probes.LinearClassifier),
}
"""Layer -> the shape of its weight, and the head that it belongs to."""


def head(layer: str) -> dict[str, np.ndarray]:
    """Random tensors of a head."""
    rng, (shape, _) = np.random.default_rng(0), KINDS[layer]
    found = {
        f"{layer}.weight": rng.normal(size=shape),
        f"{layer}.bias": rng.normal(size=shape[0]),
    }
    if layer.endswith("conv_seg"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            found[f"decode_head.bn.{name}"] = rng.uniform(0.5, 1, shape[1])
    return {name: value.astype(np.float32) for name, value in found.items()}


def beside() -> dict[str, np.ndarray]:
    """Tensors of a backbone, of which the names matter."""
    names = ("cls_token", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight")
    return {f"backbone.{name}": np.zeros(2, np.float32) for name in names}


def equal(a: dict, b: dict) -> bool:
    """Whether two trees hold the same numbers."""
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.depther."])
@pytest.mark.parametrize("key", [None, "state_dict", "params"])
def test_a_head_is_read_out_of_a_whole_models_checkpoint(
    tmp_path, capsys, layer, prefix, key
):
    plain = head(layer)
    alone = zoo.load_head(arrays.write_torch(tmp_path / "head.pth", plain))
    assert isinstance(alone[0], KINDS[layer][1])
    assert "beside" not in capsys.readouterr().err
    whole = {prefix + name: value for name, value in (plain | beside()).items()}
    content = whole if key is None else {"meta": {"epoch": 3}, key: whole}
    module, variables = zoo.load_head(arrays.write_torch(tmp_path / "a.pth", content))
    assert module == alone[0] and equal(variables, alone[1])
    place = "" if prefix == "module." else prefix
    line = f"took the head, and left 3 tensors beside it ({place}backbone."
    assert line in capsys.readouterr().err


def test_the_average_of_a_heads_weights_is_taken_and_that_is_told(tmp_path, capsys):
    plain = head("linear_head")
    average = {name: value + 1 for name, value in plain.items()}
    both = {"state_dict": plain, "state_dict_ema": average}
    _, found = zoo.load_head(arrays.write_torch(tmp_path / "a.pth", both))
    _, alone = zoo.load_head(arrays.write_torch(tmp_path / "b.pth", average))
    assert equal(found, alone)
    said = capsys.readouterr().err
    assert "left 2 tensors beside it (state_dict.linear_head.bias, " in said


def test_a_head_of_another_name_is_known_by_its_last_layer(tmp_path, capsys):
    state = head("decode_head.conv_seg")
    renamed = {n.replace("decode_head.", "net.seg_head."): v for n, v in state.items()}
    renamed |= {f"net.{name}": value for name, value in beside().items()}
    renamed["net.auxiliary_head.conv_seg.weight"] = np.zeros(2, np.float32)
    renamed["criterion.weight"] = np.zeros(2, np.float32)
    path = arrays.write_torch(
        tmp_path / "a.pth", [{"state_dict": renamed}, {"lr": 1.0}]
    )
    found = zoo.load_head(path)
    assert "left 5 tensors beside it (criterion.weight, " in capsys.readouterr().err
    alone = zoo.load_head(arrays.write_torch(tmp_path / "b.pth", state))
    assert found[0] == alone[0] and equal(found[1], alone[1])


def test_several_heads_without_an_order_are_refused(tmp_path):
    both = head("decode_head.conv_depth") | head("linear_head")
    with pytest.raises(ValueError, match=r"holds 2 heads, .*'decode_head\.', 'linear_"):
        zoo.load_head(arrays.write_torch(tmp_path / "a.pth", both))
    pair = {"a": head("linear_head"), "b": head("linear_head")}
    with pytest.raises(ValueError, match=r"2 heads, under 'a\.linear_head\.'"):
        zoo.load_head(arrays.write_torch(tmp_path / "a.pth", pair))


def test_tensors_of_another_part_are_not_left_in_silence(tmp_path):
    whole = head("decode_head.conv_depth") | {"neck.weight": np.zeros(2, np.float32)}
    with pytest.raises(ValueError, match=r"unexpected neck\.weight"):
        zoo.load_head(arrays.write_torch(tmp_path / "a.pth", whole))


@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_head_with_nan_or_infinity_is_refused_by_name(tmp_path, layer, value):
    state = head(layer)
    for name in state:
        broken = {n: v.copy() for n, v in state.items()}
        broken[name].flat[-1] = value
        export.write_safetensors(tmp_path / "a", broken, {})
        last = name.split(".", 1)[1].replace(".", r"\.")
        with pytest.raises(ValueError, match=f"a: 1 of . tensors hold NaN.*: {last}"):
            zoo.load_head(tmp_path / "a")
