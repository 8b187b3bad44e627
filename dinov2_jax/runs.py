"""A run's checkpoints as weights: by the workdir, the best one, or one by its step."""

import dataclasses
import os
import pathlib

from dinov2_jax import checkpoint, errors, resume

PARTS = {"teacher": "teacher", "student": "params"}
"""Name of a network -> its name in a checkpoint of ours."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A run's workdir, and the step of the checkpoint that is meant."""

    folder: pathlib.Path
    step: int | None = None  # None for the newest that can be read

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder of its checkpoints."""
        return self.folder / "checkpoints"


def place(source: str | os.PathLike) -> Place | None:
    """The checkpoint that a text stands for, or None if it is of no run.

    Args:
        source: RUN for its newest checkpoint, RUN@best for that of the highest k-NN
            accuracy, RUN@STEP or RUN/checkpoints/STEP. A file or folder whose name
            holds an @ itself comes first.
    Raises: ValueError if the run has no such checkpoint; it lists those it has.
    """
    path = pathlib.Path(source).expanduser().absolute()
    if checkpoint.steps(path / "checkpoints"):
        return Place(path)
    if path.name == "checkpoints" and checkpoint.steps(path):
        return Place(path.parent)
    if path.parent.name == "checkpoints" and checkpoint.steps(path.parent):
        return _chosen(Place(path.parent.parent), path.name)
    name, at, choice = path.name.rpartition("@")
    folder = path.with_name(name) if name else None
    if path.exists() or not at or folder is None or not folder.is_dir():
        return None
    if not checkpoint.steps(folder / "checkpoints"):
        raise errors.InputError(
            f"{source}: {folder} holds no checkpoint, which @{choice} could choose."
        )
    return _chosen(Place(folder), choice)


def _chosen(run: Place, choice: str) -> Place:
    """The run with the step that a text chooses."""
    steps = checkpoint.steps(run.checkpoints)
    if choice == "best":
        best = checkpoint.best_step(run.checkpoints)
        if best is None:
            raise errors.InputError(
                f"{run.folder} holds no checkpoint with a k-NN accuracy, so that none is "
                f"the best; choose a step, {run.folder.name}@STEP, of {steps}."
            )
        return dataclasses.replace(run, step=best)
    if not choice.isdecimal() or int(choice) not in steps:
        raise errors.InputError(
            f"{run.folder} holds no checkpoint {choice!r}; choose best or one of the "
            f"steps {steps}, as in {run.folder.name}@{steps[-1]}."
        )
    return dataclasses.replace(run, step=int(choice))


def load(run: Place, which: str = "teacher") -> tuple[dict, tuple[str, ...]]:
    """Parameters of a network in a checkpoint, and lines on those passed over.

    Args:
        run: of `place`. Without a step, damaged checkpoints are passed over for the
            newest that can be read, as training does; nothing is moved or removed.
        which: one of PARTS.
    Returns: {backbone, dino_head[, ibot_head]}, and the lines.
    Raises: ValueError if what was chosen, or every checkpoint, is damaged; OSError if
        storage fails, which older checkpoints would not mend.
    """
    there = checkpoint.steps(run.checkpoints)
    damaged = []
    for step in reversed(there) if run.step is None else [run.step]:
        try:
            params = checkpoint.load_params(run.checkpoints, PARTS[which], step)
        except Exception as error:
            path, why = run.checkpoints / str(step), checkpoint.short(error)
            if resume.storage_fails(error):
                raise errors.FileError(
                    f"checkpoint {path} cannot be read ({why}); mend the storage or its "
                    f"permissions, or choose another step of {there}."
                ) from error
            damaged.append((path, why))
            continue
        lines = (
            f"checkpoint {path} is damaged ({why}); step {step} is read instead"
            for path, why in damaged
        )
        return params, tuple(lines)
    path, why = damaged[0]
    others = [step for step in there if step != run.step]
    advice = f"choose another step of {others}" if run.step and others else "restore it"
    several = f", nor any of the {len(damaged) - 1} older ones" * (len(damaged) > 1)
    raise errors.InputError(
        f"checkpoint {path} cannot be read ({why}){several}; {advice}."
    )
