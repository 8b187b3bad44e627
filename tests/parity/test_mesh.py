"""The reference's network on meshes: the numbers of one device, and the reference's."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from dinov2_jax import sharding, tree
from dinov2_jax.data import batch as contract
from dinov2_jax.train import step
from parity import trajectory

MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
WAYS = {
    "plain": ({}, 1),
    "dropped": ({"drop_path": 0.5}, 1),
    "accumulated": ({"drop_path": 0.5, "remat": "full"}, 2),
}
"""Changes of the backbone, and parts of the student's pass."""

GROUP = 2  # images; the golden batch is one group, which eight devices cannot share
GROUPS = 16  # a multiple of devices and parts together


def mesh(replicas: int, ring: int) -> jax.sharding.Mesh:
    """That many of the virtual devices."""
    return sharding.make_mesh(ring, jax.devices()[: replicas * ring])


def large_batch(run: trajectory.Golden) -> contract.Batch:
    """Several golden batches as one, in groups of two images."""
    number = GROUPS * GROUP // math.gcd(GROUPS * GROUP, run.dims["B"])
    found = [jax.device_get(run.batch(1 + i % run.steps)) for i in range(number)]
    images, local, masks = (
        np.concatenate([getattr(b, name) for b in found])
        for name in ("global_crops", "local_crops", "masks")
    )
    views = masks.shape[1]
    grouped = masks.reshape(-1, GROUP * views, masks.shape[-1])
    capacity = int(grouped.sum((1, 2)).max()) + 3  # some padding
    packed = contract.pack_masks(grouped, views, capacity)
    return contract.Batch(images, local, *packed)


@functools.cache
def gradient(arrays, stem: str, way: str, shape: tuple[int, int] | None):
    """(terms, gradients) of the first step on a mesh, or on one device without any."""
    changes, parts = WAYS[way]
    over = None if shape is None else mesh(*shape)
    run = trajectory.Golden(arrays, stem, over, **changes)
    recipe = dataclasses.replace(run.recipe, accumulate=parts)
    batch = run.placed(large_batch(run))

    @jax.jit
    def one(state, batch):
        grads, terms, _, _ = step.gradient(recipe, state, batch)
        return terms, grads

    return jax.device_get(one(run.state("init"), batch))


@pytest.mark.slow  # test_sharding.py holds a slice of it
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_losses_and_gradients_do_not_depend_on_the_mesh(
    arrays, trajectory_file, shape, way
):
    terms, grads = gradient(arrays, trajectory_file, way, shape)
    wanted_terms, wanted = gradient(arrays, trajectory_file, way, None)
    for name, want in wanted_terms.items():
        # float32 sums over images in another order
        trajectory.close(terms[name], want, 1e-5, 1e-5)
    for name, got, want in zip(
        tree.names(grads), jax.tree.leaves(grads), jax.tree.leaves(wanted)
    ):
        off = np.abs(got - want).max()
        assert off <= max(1e-7, 2e-5 * np.abs(want).max()), f"{name}: {off}"


@pytest.mark.slow
def test_trajectories_on_two_rings_of_four_equal_the_reference(arrays, trajectory_file):
    run = trajectory.Golden(arrays, trajectory_file, mesh(2, 4))
    state = run.state("init")
    layout = jax.tree.map(lambda x: x.sharding, state)
    update = jax.jit(
        functools.partial(step.train_step, run.recipe),
        out_shardings=(layout, None),
    )
    scalars = run.data.under("step_scalars")
    for number in range(run.steps):
        state, terms = update(state, run.batch(number + 1))
        trajectory.close(terms["loss/total"], scalars["loss/total"][number], 2e-5)
        for name, want in run.data.under("step_scalars/norm").items():
            trajectory.close(terms[f"grad_norm/{name}"], want[number], 5e-5)
    kernel = state.params["backbone"]["blocks"]["mlp"]
    leaf = jax.tree.leaves(kernel)[-1]
    assert leaf.addressable_shards[0].data.shape[1] == leaf.shape[1] // 4
    got = run.official(jax.device_get(state.params))
    peak, off = run.cfg["optim"]["lr"], []
    for name, want in run.stored("student_final").items():
        difference = np.abs(got[name] - want)
        if name.endswith("attn.qkv.bias"):  # the key's own part is rounding noise
            difference = np.delete(difference.reshape(3, -1), 1, axis=0)
        off.append(difference.ravel())
    off = np.concatenate(off)
    assert (off <= 2e-6).mean() >= 0.999 and off.max() <= peak
