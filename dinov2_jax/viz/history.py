"""A run as its files tell it: metrics, config, facts about the start, pictures."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.escaping import escaped


@dataclasses.dataclass(frozen=True)
class Run:
    """What a working directory holds."""

    name: str
    folder: pathlib.Path
    metrics: list[dict[str, Any]]  # one dict a logged step, with `step`
    unread: list[int]  # numbers of the lines of metrics.jsonl that are no such dict
    config: dict[str, Any]  # {} if there is no config.json
    info: dict[str, Any]  # run.json; {} if there is none
    pictures: list[pathlib.Path]  # pictures/*.png but for the curves


def read(workdirs: Sequence[str | pathlib.Path]) -> list[Run]:
    """Runs of working directories, with names that tell them apart.

    A line of metrics.jsonl that is cut off (the job writes right now, or was killed
    while it wrote) is left out and its number kept in `unread`.

    Args:
        workdirs: folders with metrics.jsonl, and maybe config.json, run.json and
            pictures/*.png.
    Raises: ValueError if there are none, one comes twice, has no metrics.jsonl, or
        its config.json or run.json is no JSON object.
    """
    folders = [pathlib.Path(folder).resolve() for folder in workdirs]
    if not folders:
        raise errors.InputError("no workdir given; name at least one folder of a run.")
    if len(set(folders)) < len(folders):
        raise errors.InputError(
            f"a workdir comes twice in {[str(f) for f in folders]}."
        )
    return [_run(folder, name) for folder, name in zip(folders, _names(folders))]


def series(
    metrics: Sequence[Mapping[str, Any]], key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] int64, rising, and values [n] float64 of one metric.

    Lines without the key and values that are text are left out; null counts as NaN.
    Where a resumed run logged a step again, the later line holds.
    """
    found = {line["step"]: number(line[key]) for line in metrics if key in line}
    points = sorted((step, value) for step, value in found.items() if value is not None)
    steps = np.array([step for step, _ in points], np.int64)
    return steps, np.array([value for _, value in points], np.float64)


def last(metrics: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Last finite value of a metric, or None if there is none."""
    values = series(metrics, key)[1]
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else None


def number(value: Any) -> float | None:
    """A logged value as a float, NaN for null, or None if it is no number."""
    if value is None:
        return float("nan")
    if isinstance(value, (list, dict)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts under dotted keys; an empty dict is a leaf."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _names(folders: list[pathlib.Path]) -> list[str]:
    """Shortest tails of the paths that all differ."""
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        names = [escaped("/".join(folder.parts[-depth:])) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [escaped(str(folder)) for folder in folders]


def _run(folder: pathlib.Path, name: str) -> Run:
    """The run of one folder."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise errors.InputError(
            f"{folder} has no metrics.jsonl; pass the --workdir of a training run, "
            "which writes that file from its first logged step on."
        )
    metrics, unread = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for i, text in enumerate(lines, 1):
        line = _line(text)
        if line is not None:
            metrics.append(line)
        elif text.strip():
            unread.append(i)
    pictures = sorted((folder / "pictures").glob("*.png"))
    pictures = [p for p in pictures if not p.name.startswith(("curve_", "."))]
    config, info = (_object(folder / f"{stem}.json") for stem in ("config", "run"))
    return Run(name, folder, metrics, unread, config, info, pictures)


def _line(text: str) -> dict[str, Any] | None:
    """One line of metrics.jsonl, or None if it is no dict with a whole step."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict):
        return None
    step = line.get("step")
    if isinstance(step, float) and step.is_integer():
        return line | {"step": int(step)}
    return line if type(step) is int else None


def _object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of a file; {} if there is no such file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise errors.InputError(
            f"{path} is no JSON ({error}); mend or remove it."
        ) from error
    if type(found) is not dict:
        raise errors.InputError(
            f"{path} holds a {type(found).__name__}, needs an object."
        )
    return found
