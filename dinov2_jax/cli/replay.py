"""One step again: the one that ended a run because it was not finite."""

import functools
import math
import pathlib

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from dinov2_jax import checkpoint, sharding, tree
from dinov2_jax.cli import assemble, restoring
from dinov2_jax.data import batch as contract
from dinov2_jax.models import dino
from dinov2_jax.train import step as train_step
from dinov2_jax.train.state import TrainState


def keep(folder: pathlib.Path, done: int, state: TrainState, batch) -> str:
    """Save what reproduces a step that was not finite; returns what to tell of it.

    Args:
        folder: the workdir.
        done: the number of the step, from 1.
        state: after it; it was not applied, so that the parameters are those before.
        batch: that it met.
    """
    before = state.replace(
        step=state.step * 0 + (done - 1), rejected=state.rejected * 0
    )
    path = folder / "failed" / str(done)
    checkpoint.save_step(path, before, batch)
    return (
        f"The last good checkpoint is kept; add --replay={path} to the same command "
        "to see that step again."
    )


def main(config: ConfigDict, model: dino.DINO, mesh: Mesh, folder: pathlib.Path) -> int:
    """Run the step of `keep` again, print its terms and where it is not finite.

    Returns: 3 if it is not finite again, else 0.
    Raises: ValueError if the folder holds no step of this config.
    """
    recipe = assemble.recipe(config, model, assemble.shapes(config, model))
    wanted = restoring.targets(config, model, recipe, mesh)
    rows = NamedSharding(mesh, sharding.BATCH)
    where = contract.Batch(rows, rows, rows, rows, rows)
    state, batch = checkpoint.restore_step(folder, wanted, where)
    number = int(state.step) + 1
    grads, *_ = jax.jit(functools.partial(train_step.gradient, recipe))(state, batch)
    _, terms = jax.jit(functools.partial(train_step.train_step, recipe))(state, batch)
    values = {name: float(x) for name, x in jax.device_get(terms).items()}
    print(f"step {number}, {len(jax.tree.leaves(grads))} gradient leaves")
    for name, value in sorted(values.items()):
        print(f"  {name:<32} {value:.8g}")
    bad = [name for name, good in _finite(grads) if not good]
    for name in bad:
        print(f"  not finite: the gradient of {name}")
    again = bool(bad) or not math.isfinite(values["loss/total"])
    print("The step is not finite again." if again else "Here the step is finite.")
    return 3 if again else 0


def _finite(grads) -> list[tuple[str, bool]]:
    """Name of each leaf, and whether all of it is finite."""
    good = jax.jit(lambda g: jax.tree.map(lambda x: jax.numpy.isfinite(x).all(), g))
    return list(zip(tree.names(grads), jax.tree.leaves(jax.device_get(good(grads)))))
