"""Checkpoints by Orbax: the training state and a note that describes it.

`resume` chooses which one a run continues from.
"""

import contextlib
import json
import logging
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dinov2_jax import errors, tree

log = logging.getLogger(__name__)

SHARE = 4 << 20  # bytes
"""A copy on several devices is written in shares only if each has so many: cutting
one compiles a program for every shape, which takes longer than writing small arrays."""


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log says what no exception will.

    Orbax logs a page for each of its threads that met a full disk, before the error
    reaches the caller.
    """
    said = f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
    return not errors.FULL_TEXT.search(said)


logging.getLogger("absl").addFilter(_is_news)


def manager(
    folder: pathlib.Path,
    keep: int = 2,
    keep_every: int = 0,
    keep_best: bool = True,
    written: Callable[[], None] | None = None,
) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints; what a crash left half written is removed.

    Args:
        folder: one sub-folder a step.
        keep: latest checkpoints kept, >= 1.
        keep_every: checkpoints at multiples of this step are kept too; 0 for none.
        keep_best: the one with the highest `knn` of those saved with it is kept too.
        written: called, in another thread, when all files of a checkpoint are written
            and it is about to get its name.
    Raises: ValueError if keep is below 1.
    """
    if keep < 1:
        raise errors.InputError(f"checkpoint.keep={keep}; keep at least 1.")
    folder = folder.absolute()
    if jax.process_index() == 0:
        for left in folder.glob("*.orbax-checkpoint-tmp*"):
            log.warning("removing the half-written checkpoint %s", left)
            shutil.rmtree(left, ignore_errors=True)
    policies = [checkpoint_managers.LatestN(keep)]
    if keep_every:
        policies.append(checkpoint_managers.EveryNSteps(keep_every))
    if keep_best:
        policies.append(_Best(folder))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        async_options=ocp.AsyncOptions(post_finalization_callback=written),
    )
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARE)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "note": ocp.JsonCheckpointHandler(),
        "score": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: Any,
    note: dict,
    knn: float | None = None,
) -> None:
    """Start saving a step; returns while the disk still writes.

    Args:
        checkpoints: of `manager`.
        step: updates done.
        state: tree of arrays.
        note: JSON beside it: data position, config, metrics history.
        knn: accuracy at this step, for `keep_best`.
    """
    items = {"state": ocp.args.PyTreeSave(state), "note": ocp.args.JsonSave(note)}
    score = None if knn is None else {"knn": knn}
    if score:
        items["score"] = ocp.args.JsonSave(score)
    checkpoints.save(step, args=ocp.args.Composite(**items), metrics=score)


def steps(folder: pathlib.Path) -> list[int]:
    """Steps of the whole checkpoints in a run's `checkpoints`, rising."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def half_written(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a run's `checkpoints` that were not written whole."""
    names = (p.name.partition(".") for p in folder.glob("*.orbax-checkpoint-tmp*"))
    return [int(step) for step, *_ in names if step.isdigit()]


def accuracies(folder: pathlib.Path) -> dict[int, float]:
    """Step -> k-NN accuracy of the checkpoints that were saved with one.

    Args:
        folder: a run's `checkpoints`.
    """
    known = {}
    for step in steps(folder):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            text = (folder / str(step) / "score" / "metadata").read_text(
                encoding="utf-8"
            )
            known[step] = float(json.loads(text)["knn"])
    return known


class _Best(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the highest accuracy, of this start or an earlier one.

    Orbax's own policy would ask for an accuracy at every save, and a damaged file of
    one would keep the folder from being opened.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """One answer a checkpoint; see Orbax."""
        known = accuracies(self.folder)
        known |= {c.step: c.metrics["knn"] for c in checkpoints if c.metrics}
        best = _best(known)
        return [c.step == best for c in checkpoints]


def _best(known: dict[int, float]) -> int | None:
    """The step of the highest accuracy, the latest of equals."""
    return max(known, key=lambda step: (known[step], step), default=None)


def best_step(folder: pathlib.Path) -> int | None:
    """Step of the checkpoint with the highest k-NN accuracy, the latest of equals.

    Args:
        folder: a run's `checkpoints`.
    Returns: the step; None if no checkpoint was saved with an accuracy.
    """
    return _best(accuracies(folder))


def stored_as(shapes: Any, stored: Any) -> Any:
    """The shapes of a state as a stored tree has them.

    In earlier versions the optimiser had a clock of its own beside the state's step.
    """
    clock = {"opt_state/2/count"}
    if set(tree.names(stored)) != set(tree.names(shapes)) | clock:
        return shapes
    return shapes.replace(opt_state=(*shapes.opt_state[:2], {"count": shapes.step}))


def without_clock(state: Any, shapes: Any) -> Any:
    """The state of `stored_as` as it is now."""
    if jax.tree.structure(state) == jax.tree.structure(shapes):
        return state
    return state.replace(opt_state=(*state.opt_state[:2], shapes.opt_state[2]))


def save_step(folder: pathlib.Path, state: Any, batch: Any) -> None:
    """A state and the batch that it met, in a folder of their own, whole or not at all.

    Args:
        folder: to make; one that is there is replaced.
        state, batch: trees of arrays; every process calls this.
    """
    arrays = dict(zip(tree.names(batch), jax.tree.leaves(batch)))
    # Orbax stores no empty arrays: local crops or masked patches that there are none of.
    empty = {
        name: {"shape": np.array(x.shape), "dtype": np.zeros(1, x.dtype)}
        for name, x in arrays.items()
        if not x.size
    }
    arrays = {name: x for name, x in arrays.items() if x.size}
    item = {"state": state, "batch": arrays, "empty": empty}
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder.absolute(), item, force=True)


def restore_step(folder: pathlib.Path, state: Any, batch: Any) -> tuple[Any, Any]:
    """(state, batch) of `save_step`.

    Args:
        folder: of `save_step`.
        state: tree of ShapeDtypeStructs with the shardings wanted now.
        batch: flat struct of the shardings wanted; shapes are the folder's own.
    Raises: ValueError if the folder is none of them, or of another config.
    """
    folder = folder.absolute()
    try:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(folder).item_metadata.tree
            layout = dict(zip(tree.names(batch), jax.tree.leaves(batch)))
            item = {
                "state": stored_as(state, stored["state"]),
                "batch": {
                    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout[name])
                    for name, x in stored["batch"].items()
                },
            }
            if "empty" in stored:
                item["empty"] = jax.tree.map(
                    lambda x: np.zeros(x.shape, x.dtype), stored["empty"]
                )
            found = reader.restore(folder, item)
            for name, one in (found.get("empty") or {}).items():
                none = np.zeros(one["shape"], one["dtype"].dtype)
                found["batch"][name] = jax.device_put(none, layout[name])
            arrays = tree.map_named(lambda name, _: found["batch"][name], batch)
    except Exception as error:  # Orbax raises whatever it met
        raise errors.InputError(
            f"{folder} holds no step of this config that can be read "
            f"({short(error)}); give "
            "WORKDIR/failed/STEP of a run of the same config."
        ) from error
    return without_clock(found["state"], state), arrays


def short(error: Exception) -> str:
    """The beginning of what Orbax says, which may be pages, in one line."""
    return " ".join(str(error).split())[:200]


def load_params(
    folder: pathlib.Path, which: str = "teacher", step: int | None = None
) -> dict:
    """Parameters of a run's checkpoint, on this process's first device.

    Args:
        folder: a run's `checkpoints`.
        which: `teacher` or `params` (the student).
        step: of the checkpoint, such as `best_step(folder)`; None for the newest.
    Returns: {backbone, dino_head[, ibot_head]}.
    Raises: ValueError if there is no such checkpoint.
    """
    folder = folder.absolute()
    there = steps(folder)
    if not there:
        raise errors.InputError(f"{folder} holds no checkpoint; train first.")
    step = there[-1] if step is None else step
    if step not in there:
        raise errors.InputError(
            f"{folder} holds no checkpoint of step {step}; choose one of {there}."
        )
    path = folder / str(step) / "state"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.PyTreeCheckpointer() as reader:
        stored = reader.metadata(path).item_metadata.tree[which]
        shapes = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), stored
        )
        wanted = {which: shapes}
        args = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        return reader.restore(path, args=args)[which]
