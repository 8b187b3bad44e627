"""A sweep over values of C, which resumes where it was stopped and says how far it is."""

import pathlib
import types
from typing import Any

import numpy as np

from dinov2_jax import writing
from dinov2_jax.cli import training
from dinov2_jax.cli.results import Job
from dinov2_jax.evals import lbfgs, strengths
from dinov2_jax.train import progress

FREE = ("batch_size", "workers", "threads", "metric")
"""Settings that a sweep which resumes may change; what judges a C is held by itself."""


def values(s: types.SimpleNamespace) -> np.ndarray:
    """[number] values of C, rising, evenly spread by their powers of ten."""
    return 10 ** np.linspace(s.lowest, s.highest, s.number)


def resumed(job: Job, judge: str) -> dict[str, Any]:
    """The arguments `partial` and `after` of a sweep whose state is in a job's folder.

    Args:
        job: with the settings of `logreg`.
        judge: the metric by which C is chosen.
    Raises: ValueError if the folder holds the state of another training.
    """
    splits = ("train", "labels/train")  # no C is chosen by val
    making = training.making(job, FREE, splits) | {"judge": judge}
    path = training.claim(job.out, making) / "sweep.npz"
    partial, cs = _read(path), values(job.settings)
    begin = 0 if partial is None else len(partial.scores)
    shown = progress.Progress(begin, len(cs), unit="C")

    def after(partial: strengths.Partial) -> None:
        _write(path, partial)
        number, best = len(partial.scores), partial.scores.argmax()
        shown.show(
            number,
            f"C {cs[number - 1]:.3g} scores {partial.scores[-1]:.3f} on the images held "
            f"out after {partial.last.iterations} steps, best C {cs[best]:.3g} "
            f"{partial.scores[best]:.3f}",
        )

    return {"partial": partial, "after": after}


def _write(path: pathlib.Path, partial: strengths.Partial) -> None:
    """The state on disk, whole or not at all."""
    parts = {
        f"{which}_{name}": array
        for which in ("last", "best")
        for name, array in getattr(partial, which)._asdict().items()
    }
    with writing.replacing(path) as part, part.open("wb") as file:
        np.savez(file, scores=partial.scores, **parts)


def _read(path: pathlib.Path) -> strengths.Partial | None:
    """The state that a stopped sweep left, if there is one."""
    if not path.exists():
        return None
    with np.load(path) as file:
        last, best = (
            lbfgs.Classifier(
                *(file[f"{which}_{name}"] for name in lbfgs.Classifier._fields)
            )
            for which in ("last", "best")
        )
        return strengths.Partial(file["scores"], last, best)
