"""One clock for all schedules: the step's, whatever was rejected or stored before."""

import itertools
import logging
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from jax.sharding import NamedSharding

from dinov2_jax import checkpoint, resume, sharding, tree
from dinov2_jax.cli import assemble, restoring
from dinov2_jax.data import batch as contract


class StepCount(NamedTuple):
    """What the optimiser's state ended with in earlier versions."""

    count: jax.Array


@pytest.fixture(scope="module")
def config():
    """Four steps at a rate that ends at 0; prototypes are frozen for two of them."""
    changes = {"optim__freeze_last_layer": "2", "optim__min_lr": "0.0"}
    return tiny.config(train__steps="4", optim__warmup="0", **changes)


@pytest.fixture(scope="module")
def mesh():
    """Eight devices as rings of four."""
    return sharding.make_mesh(4)


def equal(a, b) -> bool:
    """Whether two trees hold the same numbers."""
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


@pytest.fixture(scope="module")
def steps(config, mesh):
    """(states before and after five steps, their metrics); the second is rejected."""
    state, update = tiny.prepared(config, mesh)
    states, metrics = [jax.device_get(state)], []
    for number in range(5):
        batch = tiny.batch(config, number)
        crops = np.asarray(contract.normalize(batch.global_crops))
        crops[0] = np.nan if number == 1 else crops[0]
        local = np.asarray(contract.normalize(batch.local_crops))
        batch = batch.replace(global_crops=crops, local_crops=local)
        state, terms = update(state, sharding.put(batch, mesh))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(terms))
    return states, metrics


def test_prototypes_are_frozen_for_so_many_steps_whatever_was_rejected(steps):
    states, metrics = steps
    assert [int(m["health/rejected"]) for m in metrics] == [0, 1, 0, 0, 0]
    frozen = [
        equal(a.params["dino_head"]["last_layer"], b.params["dino_head"]["last_layer"])
        for a, b in itertools.pairwise(states)
    ]
    logged = [m["sched/last_layer_lr"] == 0 for m in metrics]
    assert frozen == logged == [True, True, False, False, True]


def test_the_rates_that_are_logged_are_those_that_are_applied(steps, config):
    states, metrics = steps
    assert metrics[4]["sched/lr"] == 0
    assert equal(states[4].params, states[5].params)
    name = "mlp_0"  # a layer of a head: its rate has no factor
    for number in (2, 3):
        before, after = (states[number + i].params["dino_head"] for i in (0, 1))
        adam = states[number + 1].opt_state[1]
        count = int(adam.count)
        b1, b2 = config.optim.betas
        mean, square = (
            moment["dino_head"][name]["kernel"] / (1 - decay**count)
            for moment, decay in ((adam.mu, b1), (adam.nu, b2))
        )
        kernel = before[name]["kernel"]
        rate, decay = (metrics[number][f"sched/{k}"] for k in ("lr", "weight_decay"))
        step = mean / (np.sqrt(square) + 1e-8) + decay * kernel
        want = kernel - rate * step
        # float32 rounding of weights below 1
        np.testing.assert_allclose(after[name]["kernel"], want, atol=1e-7)


def test_adam_counts_the_updates_that_were_applied(steps):
    counts = [int(state.opt_state[1].count) for state in steps[0]]
    assert counts == [0, 1, 1, 2, 3, 4]
    (only,) = [n for n in tree.names(steps[0][0].opt_state) if n.endswith("count")]
    assert only == "1/count"


@pytest.fixture(scope="module")
def earlier(config, mesh):
    """(a state, the same as an earlier version stored it, shapes and layouts)."""
    state, _ = tiny.prepared(config, mesh)
    count = jax.device_put(jnp.int32(1), state.step.sharding)
    model = assemble.model(config, mesh)
    recipe = assemble.recipe(config, model, assemble.shapes(config, model))
    wanted = restoring.targets(config, model, recipe, mesh)
    old = state.replace(opt_state=(*state.opt_state[:2], StepCount(count)))
    return state, old, wanted


def test_a_checkpoint_of_an_earlier_version_is_resumed(earlier, tmp_path, caplog):
    state, old, wanted = earlier
    with checkpoint.manager(tmp_path / "checkpoints") as checkpoints:
        checkpoint.save(checkpoints, 3, old, {"a": 1})
    with (
        caplog.at_level(logging.WARNING),
        checkpoint.manager(tmp_path / "checkpoints") as checkpoints,
    ):
        step, restored, note = resume.newest(checkpoints, wanted)
    assert (step, note) == (3, {"a": 1}) and not caplog.records
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert equal(restored, state)


def layout(mesh) -> contract.Batch:
    """Where a batch lies."""
    rows = NamedSharding(mesh, sharding.BATCH)
    return contract.Batch(rows, rows, rows, rows, rows)


def test_a_failed_step_of_an_earlier_version_is_read(earlier, config, mesh, tmp_path):
    state, old, wanted = earlier
    batch = sharding.put(tiny.batch(config, 0), mesh)
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "3", {"state": old, "batch": batch})
    restored, again = checkpoint.restore_step(tmp_path / "3", wanted, layout(mesh))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert equal(restored, state) and equal(again, batch)


def test_a_failed_step_without_masks_or_local_crops_is_kept(
    earlier, config, mesh, tmp_path
):
    state, _, wanted = earlier
    batch = tiny.batch(config, 0)
    batch = batch.replace(
        local_crops=batch.local_crops[:, :0],
        mask_indices=batch.mask_indices[:, :0],
        mask_weights=batch.mask_weights[:, :0],
    )
    placed = sharding.put(batch, mesh)
    checkpoint.save_step(tmp_path / "3", state, placed)
    restored, again = checkpoint.restore_step(tmp_path / "3", wanted, layout(mesh))
    assert equal(restored, state)
    for name, x, y in zip(tree.names(again), *map(jax.tree.leaves, (again, placed))):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding), name
        np.testing.assert_array_equal(x, y)
