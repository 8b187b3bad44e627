"""The state that a run begins with: of step 0, or of its newest checkpoint."""

from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint import CheckpointManager

from dinov2_jax import resume, sharding
from dinov2_jax.cli import assemble, starting
from dinov2_jax.models import dino
from dinov2_jax.train import state as train_state
from dinov2_jax.train.step import Recipe


def fresh(config: ConfigDict, model: dino.DINO, recipe: Recipe, key: jax.Array):
    """The state of step 0 from a key; to be jitted or evaluated for its shapes."""
    params = assemble.initial_params(config, model, key)
    teacher = jax.tree.map(lambda x: x + 0, params)
    return train_state.create(params, teacher, recipe.tx, assemble.prototypes(config))


def targets(
    config: ConfigDict, model: dino.DINO, recipe: Recipe, mesh: Mesh
) -> train_state.TrainState:
    """Shapes and layouts of the state on this mesh."""
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda k: fresh(config, model, recipe, k), key)
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        shapes,
        sharding.layouts(shapes, mesh),
    )


def newest_or_fresh(
    config: ConfigDict,
    model: dino.DINO,
    recipe: Recipe,
    wanted: train_state.TrainState,
    checkpoints: CheckpointManager,
) -> tuple[Any, int, dict]:
    """(state, steps done, note) of the newest checkpoint that can be read, or step 0.

    Args:
        config, model, recipe: of the run.
        wanted: of `targets`.
        checkpoints: the run's.
    """
    found = resume.newest(checkpoints, wanted)
    if found is not None:
        done, state, note = found
        return state, done, note
    layout = jax.tree.map(lambda s: s.sharding, wanted)
    make = jax.jit(lambda k: fresh(config, model, recipe, k), out_shardings=layout)
    state = make(jax.random.key(config.seed))
    if config.init.weights:
        state = starting.with_weights(state, layout, config, model.backbone)
    return state, 0, {"history": [], "tally": {}}
