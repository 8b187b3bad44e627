"""The training of all linear heads at once, which goes on where it was stopped."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import errors, sharding, writing
from dinov2_jax.cli import results, setting, training
from dinov2_jax.cli.results import Job, Table
from dinov2_jax.cli.setting import Setting
from dinov2_jax.evals import linear
from dinov2_jax.train import progress

SETTINGS = setting.Table(
    steps=Setting(
        12_500, "steps of the training; the paper's 10 x 1,250", setting.COUNT
    ),
    train_batch=Setting(
        1024,
        "images, or clips, of a step, over all devices; the paper's 8 x 128",
        setting.COUNT,
    ),
    rates=Setting(
        linear.RATES, "learning rates at 256 images a step", setting.POSITIVE
    ),
    blocks=Setting((1, 4), "last blocks whose cls tokens a head sees", setting.COUNT),
    val_every=Setting(1250, "steps between two looks at val", setting.COUNT),
    save_every=Setting(1250, "steps between two states on disk", setting.COUNT),
    log_every=Setting(50, "steps between two lines", setting.COUNT),
    seed=Setting(0, "seed of the heads, the crops and their order", setting.WHOLE),
)
FREE = ("batch_size", "workers", "threads", "save_every", "log_every", "val_every")
"""Settings that a training which goes on may change."""

Batches = Callable[[int, int, Mesh], Iterator[tuple[jax.Array, jax.Array]]]
"""(first step, batch, mesh) -> inputs [b' F] and labels [b'] of the steps from it on, the
batch and what fills it up, as of `put`."""


def check(s, depth: int) -> None:
    """Raises ValueError for settings that cannot be.

    Args:
        s: with the names of SETTINGS.
        depth: blocks of the backbone.
    """
    if not 1 <= min(s.blocks) <= max(s.blocks) <= depth:
        raise errors.InputError(
            f"blocks={s.blocks}; these weights have {depth}. Choose numbers from 1 to "
            f"{depth}, for example --set blocks=1,{min(4, depth)}."
        )


def trained(
    job: Job,
    batches: Batches,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    width: int,
) -> tuple[dict, list]:
    """The heads after all steps, and (step, best accuracy on val) on the way.

    Args:
        job: its settings with the names of SETTINGS; the state is kept in its folder.
        batches: what the heads learn from.
        rows: [n F] inputs of val.
        labels: [n] int.
        classes: K names.
        width: of one block's part of an input.
    Raises: ValueError if the folder holds heads of another training.
    """
    s, mesh, kinds = (
        job.settings,
        sharding.make_mesh(),
        linear.kinds(job.settings.blocks),
    )
    rates = linear.scaled(s.rates, s.train_batch)
    key = jax.random.key(s.seed)
    state = linear.start(key, kinds, width, len(classes), len(rates))
    making = training.making(job, FREE) | {"classes": list(classes)}
    path = training.claim(job.out, making) / "state.msgpack"
    state, history = _restored(path, state)
    step = begin = int(state.step)
    before: dict = {}
    shown = progress.Progress(begin, s.steps)
    with contextlib.closing(batches(begin, s.train_batch, mesh)) as made:
        for x, wanted in made:
            state, losses = linear.update(state, x, wanted, rates, kinds, s.steps)
            # At most a step behind: CPUs that queue many wait for each other for ever.
            jax.block_until_ready(before)
            before = losses
            step += 1
            last = step == s.steps
            if step % s.val_every == 0 or last:
                right = linear.accuracies(state.heads, rows, labels, kinds)
                history.append((step, float(max(x.max() for x in right.values()))))
            if step % s.log_every == 0 or last:
                low = min(float(x.min()) for x in losses.values())
                best = f", best on val {history[-1][1]:.3f}" if history else ""
                shown.show(step, f"loss of the best head {low:.4f}{best}")
            if step % s.save_every == 0 or last:
                _save(path, state, history)
    return jax.device_get(state.heads), history


def from_rows(rows: np.ndarray, labels: np.ndarray, seed: int, steps: int) -> Batches:
    """Batches of inputs that are there already, each epoch in an order of its own."""

    def batches(begin: int, batch: int, mesh: Mesh):
        per = max(1, len(rows) // batch)  # steps of an epoch
        for step in range(begin, steps):
            order = np.random.default_rng([seed, step // per]).permutation(len(rows))
            first = step % per * batch
            chosen = np.take(order, range(first, first + batch), mode="wrap")
            yield put(rows[chosen], labels[chosen], mesh)

    return batches


def put(
    inputs: np.ndarray, labels: np.ndarray, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """A batch over all devices; where they do not divide it, labels of -1 fill it up."""
    fill = -len(labels) % mesh.size
    inputs = np.pad(inputs, [(0, fill)] + [(0, 0)] * (inputs.ndim - 1))
    labels = np.pad(labels, (0, fill), constant_values=-1)
    return sharding.put((inputs, labels), mesh)


def chosen_of(right: dict[str, np.ndarray], s) -> tuple[tuple[str, int], dict]:
    """Which head is best on val, and its metrics.

    Args:
        right: of `linear.accuracies`.
        s: with rates and blocks.
    """
    chosen = linear.best(right)
    kind = next(k for k in linear.kinds(s.blocks) if k.name == chosen[0])
    return chosen, {
        "top1": float(right[chosen[0]][chosen[1]]),
        "rate": float(s.rates[chosen[1]]),
        "blocks": kind.blocks,
        "mean_patch": int(kind.mean_patch),
    }


def _save(path: pathlib.Path, state: linear.State, history: list) -> None:
    """The state on disk, whole or not at all."""
    saved = {"state": jax.device_get(state)._asdict(), "note": json.dumps(history)}
    with writing.replacing(path) as part:
        part.write_bytes(flax.serialization.msgpack_serialize(saved))


def _restored(path: pathlib.Path, state: linear.State) -> tuple[linear.State, list]:
    """The state that a stopped training left with its history, or the one given."""
    if not path.exists():
        return state, []
    saved = flax.serialization.msgpack_restore(path.read_bytes())
    history = [tuple(pair) for pair in json.loads(saved["note"])]
    return linear.State(**jax.tree.map(jnp.asarray, saved["state"])), history


def save(path: pathlib.Path, heads, chosen: tuple[str, int], classes) -> None:
    """The chosen head alone: kernel, bias, which it is and its classes."""
    name, rate = chosen
    parts = {k: np.asarray(heads[name][k][rate]) for k in ("kernel", "bias")}
    with writing.replacing(path) as part, part.open("wb") as file:
        np.savez(file, kind=name, classes=np.array(classes), **parts)


def tables(right: dict[str, np.ndarray], rates, history: list) -> list[Table]:
    """Accuracy of every head, and the best on the way."""
    rows = [
        [f"{rate:g}", *(results.percent(right[name][i]) for name in right)]
        for i, rate in enumerate(rates)
    ]
    way = [[step, results.percent(share)] for step, share in history]
    return [
        Table("All heads on val", ["learning rate", *right], rows),
        Table("On the way", ["step", "best head on val"], way),
    ]
