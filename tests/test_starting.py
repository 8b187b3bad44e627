"""Weights of any format as the start of a run: backbone, and heads that fit."""

import logging

import arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dinov2_jax.cli import assemble, starting
from dinov2_jax.convert import export, names
from dinov2_jax.train import state as train_state

SEPARATE = {"head__separate": "True"}


def drawn(config, seed: int) -> dict:
    """Random parameters of backbone and heads."""
    rng, shapes = np.random.default_rng(seed), assemble.shapes(config, model(config))
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )


def model(config):
    """Backbone and heads of a config."""
    return assemble.model(config)


def started(config, path, into: str = "both"):
    """The state of a run that starts from a path, and what it was before."""
    config.init.update(weights=str(path), into=into)
    before = jax.tree.map(jnp.asarray, (drawn(config, 1), drawn(config, 2)))
    tx = assemble.recipe(config, model(config), before[0]).tx
    state = train_state.create(*before, tx, assemble.prototypes(config))
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    starting.check(config, model(config))
    return starting.with_weights(state, layout, config, model(config).backbone), state


def equal(a: dict, b: dict) -> bool:
    """Whether two trees hold the same numbers."""
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def teacher_file(path, params: dict, patch: int = 4):
    """The reference's teacher file of such parameters."""
    state = {
        f"backbone.{name}": value
        for name, value in names.backbone_to_official(params["backbone"], patch).items()
    }
    for head in set(params) - {"backbone"}:
        official = names.head_to_official(params[head])
        state |= {f"{head}.{name}": value for name, value in official.items()}
    return arrays.write_torch(path, {"teacher": state})


@pytest.mark.parametrize("into", ["student", "teacher", "both"])
def test_a_training_checkpoint_gives_backbone_and_heads(tmp_path, capsys, into):
    config = tiny.config(**SEPARATE)
    given = drawn(config, 3)
    assert set(given) == {"backbone", "dino_head", "ibot_head"}
    path = teacher_file(tmp_path / "teacher_checkpoint.pth", given)
    after, before = started(config, path, into)
    for name, part in (("student", "params"), ("teacher", "teacher")):
        expected = given if into in (name, "both") else getattr(before, part)
        assert equal(getattr(after, part), expected)
    said = capsys.readouterr().err
    assert "parameters of the backbone and dino_head and ibot_head" in said


def test_heads_that_do_not_fit_start_fresh_with_a_warning(tmp_path, caplog):
    other = drawn(tiny.config(**SEPARATE, head__prototypes=24), 3)
    path = teacher_file(tmp_path / "a.pth", other)
    with caplog.at_level(logging.WARNING):
        after, before = started(tiny.config(**SEPARATE), path)
    assert equal(after.params["backbone"], other["backbone"])
    assert equal(after.params["ibot_head"], other["ibot_head"])
    assert equal(after.params["dino_head"], before.params["dino_head"])
    assert "dino_head is not used and starts fresh: dino_head/last_layer/g: (24,) " in (
        caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # one head for both losses
        started(tiny.config(), path)
    assert "its ibot_head is not used: the config has none" in caplog.text
    del other["ibot_head"]
    teacher_file(path, other)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        started(tiny.config(**SEPARATE, head__prototypes=24), path)
    assert "it has no ibot_head, which starts fresh" in caplog.text


def test_a_hugging_face_folder_of_another_grid_gives_its_backbone(tmp_path, caplog):
    large = tiny.config(crops__global_size=24)
    given = drawn(large, 3)["backbone"]
    backbone = model(large).backbone
    state = names.backbone_to_official(given, 4)
    export.write_huggingface(tmp_path / "hub", state, export.about(backbone))
    with caplog.at_level(logging.WARNING):
        after, before = started(tiny.config(), tmp_path / "hub", "student")
    assert not caplog.records
    assert equal(after.params["backbone"]["blocks"], given["blocks"])
    assert after.params["backbone"]["pos_embed"].shape == (1, 17, 32)
    assert equal(after.params["dino_head"], before.params["dino_head"])


def test_a_file_that_is_no_backbone_is_refused_by_name(tmp_path):
    path = arrays.write_torch(tmp_path / "a.pth", {"weight": np.zeros(2, np.float32)})
    config = tiny.config()
    config.init.weights = str(path)
    with pytest.raises(ValueError, match=r"init\.weights=.*a\.pth.*goes on a backbone"):
        starting.check(config, model(config))
