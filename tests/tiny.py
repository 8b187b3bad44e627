"""A config small enough for a test, and batches for it."""

import functools

import jax
import numpy as np

from dinov2_jax import config as settings
from dinov2_jax import sharding
from dinov2_jax.cli import assemble, restoring
from dinov2_jax.data import batch as contract
from dinov2_jax.data import masks


def config(**overrides):
    """A model of a few thousand parameters on crops of 16 and 8 pixels."""
    c = settings.default()
    c.crops.update(global_size=16, local_size=8, local_number=2)
    c.model.update(variant="Ti/4", width=32, depth=2, heads=2, layerscale=0.5)
    c.model.drop_path = 0.0
    c.head.update(prototypes=32, hidden=32, bottleneck=16)
    c.patch_head.update(prototypes=48, hidden=16, bottleneck=8)
    c.optim.update(warmup=2, freeze_last_layer=1, base_lr=0.01)
    c.teacher.temp_warmup = 4
    c.train.update(steps=8, batch_size=16, group_size=2, dtype="float32", log_every=1)
    c.eval.update(crop=16, resize=16, batch_size=64, every=4, limit=64, pictures=2)
    c.checkpoint.every = 3
    for name, value in overrides.items():
        settings.override(c, f"{name.replace('__', '.')}={value}")
    return c


def batch(c, seed: int) -> contract.Batch:
    """Random crops with the masks of that seed."""
    rng = np.random.default_rng(seed)
    b, u, v = c.train.batch_size, c.crops.global_number, c.crops.local_number
    big, small = c.crops.global_size, c.crops.local_size
    side, rows = big // 4, c.train.group_size * u
    drawn = [
        masks.draw(
            rng,
            rows,
            (side, side),
            c.masks.probability,
            c.masks.ratio,
            max_patches=side * side / 2,
        )
        for _ in range(b // c.train.group_size)
    ]
    drawn = np.stack(drawn).reshape(len(drawn), rows, -1)
    share, ratio = c.masks.probability, c.masks.ratio
    capacity = masks.upper_bound(rows, side * side, share, ratio)
    return contract.Batch(
        rng.integers(0, 256, (b, u, big, big, 3), np.uint8),
        rng.integers(0, 256, (b, v, small, small, 3), np.uint8),
        *contract.pack_masks(drawn, u, capacity),
    )


def prepared(c, mesh):
    """A fresh state on a mesh, and the jitted step."""
    model = assemble.model(c, mesh)
    key = jax.random.key(c.seed)
    recipe = assemble.recipe(c, model, assemble.shapes(c, model))
    fresh = functools.partial(restoring.fresh, c, model, recipe)
    layout = sharding.layouts(jax.eval_shape(fresh, key), mesh)
    state = jax.jit(fresh, out_shardings=layout)(key)
    return state, assemble.update(recipe, state, mesh)


def train(c, mesh, steps: int):
    """State and metrics after some steps on a mesh."""
    state, update = prepared(c, mesh)
    metrics = []
    for number in range(steps):
        state, terms = update(state, sharding.put(batch(c, number), mesh))
        metrics.append(jax.device_get(terms))
    return state, metrics
