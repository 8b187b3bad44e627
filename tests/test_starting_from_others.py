"""Starting a run from backbones of other kinds, and from files that hold more."""

import arrays
import jax
import numpy as np
import pytest
import tiny

from dinov2_jax.cli import assemble, starting
from dinov2_jax.convert import export, names
from dinov2_jax.models import vit


def backbone(config) -> vit.ViT:
    """The backbone of a config."""
    return assemble.model(config).backbone


def official(config, seed: int = 0) -> tuple[dict, dict]:
    """Random parameters of a config's backbone, and their official state dict."""
    rng = np.random.default_rng(seed)
    shapes = assemble.shapes(config, assemble.model(config))["backbone"]
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )
    return params, names.backbone_to_official(params, 4)


def read(config) -> dict:
    """The backbone that a run of a config starts from."""
    starting.check(config, assemble.model(config))
    shapes = assemble.shapes(config, assemble.model(config))["backbone"]
    return starting._read(config.init, shapes, backbone(config))["backbone"]


def equal(a: dict, b: dict) -> bool:
    """Whether two trees hold the same numbers."""
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_a_backbone_without_layerscale_starts_a_model_without(tmp_path):
    config = tiny.config(model__layerscale="0")
    params, state = official(config)
    del state["mask_token"]  # as in a file of DINO v1
    config.init.weights = str(arrays.write_torch(tmp_path / "dino.pth", state))
    params["mask_token"] = np.zeros_like(params["mask_token"])
    assert equal(read(config), params)
    other = tiny.config(init__weights=config.init.weights)
    with pytest.raises(ValueError, match=r"no LayerScale.*set model\.layerscale=0, or"):
        read(other)
    other.init.partial = True
    started = read(other)
    assert equal(started["blocks"]["attn"], params["blocks"]["attn"])
    assert (started["blocks"]["ls1"]["gamma"] == 0.5).all()


def test_one_of_several_backbones_is_chosen_by_its_prefix(tmp_path):
    config = tiny.config()
    params, state = official(config, 1)
    both = {f"a.{n}": v for n, v in state.items()}
    both |= {f"b.{n}": v for n, v in official(config, 2)[1].items()}
    config.init.weights = str(arrays.write_torch(tmp_path / "two.pth", both))
    with pytest.raises(ValueError, match=r"init\.weights=.*2 backbones"):
        read(config)
    config.init.prefix = "a"
    assert equal(read(config), params)


def test_a_table_that_is_not_square_is_resized_to_the_configs(tmp_path):
    config = tiny.config()
    params, state = official(config)
    state["pos_embed"] = np.ones((1, 1 + 2 * 5, 32), np.float32)
    about = export.about(backbone(config)) | {"image_size": (8, 20)}
    export.write_safetensors(tmp_path / "a", state, about)
    config.init.weights = str(tmp_path / "a")
    started = read(config)
    assert started["pos_embed"].shape == params["pos_embed"].shape
    np.testing.assert_allclose(started["pos_embed"], 1, atol=1e-6)


def test_weights_of_another_number_of_heads_are_refused_by_the_setting(tmp_path):
    config = tiny.config()
    params, state = official(config)
    about = export.about(backbone(config)) | {"heads": 4}
    export.write_safetensors(tmp_path / "a", state, about)
    config.init.weights = str(tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"4 attention heads, .* 2; set model\.heads=4"
    ):
        read(config)
    config.model.heads = 4
    assert equal(read(config), params)


def test_weights_with_nan_start_nothing(tmp_path):
    config = tiny.config()
    _, state = official(config)
    state["norm.bias"] = np.full_like(state["norm.bias"], np.nan)
    config.init.weights = str(arrays.write_torch(tmp_path / "a.pth", state))
    with pytest.raises(ValueError, match=r"init\.weights=.* hold NaN.*: norm\.bias"):
        read(config)
