"""What an evaluation leaves in its folder: results.json, a line of results.csv, a page."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dinov2_jax.cli import doubts, frozen, predictions, workdir
from dinov2_jax.data import fingerprint
from dinov2_jax.data.record import Source
from dinov2_jax.evals import depth, metrics
from dinov2_jax.viz import evaluation, page

WORST = 20  # classes of the table
COLUMNS = (
    "finished",
    "task",
    "weights",
    "weights_sha256",
    "architecture",
    "train",
    "val",
    "metric",
    "value",
    "seconds",
    "metrics",
)
"""Of results.csv."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a task is given."""

    task: str
    weights: str
    backbone: frozen.Backbone
    train: str | None  # spec of a source
    val: str
    tests: dict[str, str]  # name -> spec
    labels: dict[str, str]  # name of a test -> file of its labels
    out: pathlib.Path
    cache: pathlib.Path  # folder of features
    settings: types.SimpleNamespace
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Split -> its opened source, or the Path of a file; of a task's `inputs`."""
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    """Split -> `fingerprint.of` its input."""
    sources: dict[str, Source] = dataclasses.field(default_factory=dict)
    """Spec -> its source, if it was opened already, by another task of a list too."""
    prints: dict[int, str] = dataclasses.field(default_factory=dict)
    """id() of each of these -> its fingerprint, if that was taken already."""
    warnings: list[str] = dataclasses.field(default_factory=list)

    def warn(self, text: str) -> None:
        """Say once, on standard error and in the results, what makes them doubtful."""
        if text not in self.warnings:
            self.warnings.append(text)
            print(f"{self.task}: warning: {text}", file=sys.stderr)

    def opened(self, inputs: Callable[["Job"], dict[str, Any]]) -> "Job":
        """The job with what it reads; itself if that was opened before.

        Raises: ValueError if something of it cannot be opened.
        """
        if self.inputs:
            return self
        found = inputs(self)
        prints = {split: self._print(one) for split, one in found.items()}
        job = dataclasses.replace(self, inputs=found, fingerprints=prints)
        doubts.of_equal_splits(job)
        return job

    def _print(self, data: Any) -> str:
        """The fingerprint of an input; a source that is shared is looked at once."""
        if not any(data is source for source in self.sources.values()):
            return fingerprint.of(data)
        if id(data) not in self.prints:
            self.prints[id(data)] = fingerprint.of(data)
        return self.prints[id(data)]


class Picture(NamedTuple):
    """One for the page, and for pictures/NAME.png."""

    name: str
    title: str
    caption: str
    pixels: np.ndarray  # [H W 3] uint8


class Table(NamedTuple):
    """One for the page."""

    title: str
    heads: list[str]
    rows: list[list[Any]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a task found; the first metric is the one that counts."""

    metrics: dict[str, float]
    data: dict[str, dict]  # split -> spec, images, skipped, fingerprints
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    images: list[predictions.Columns] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)  # how to read metrics


def classified(
    labels: np.ndarray, guess: np.ndarray, names: Sequence[str], what: str
) -> tuple[list[Picture], list[Table]]:
    """Confusion matrix and worst classes of guesses, for the page."""
    matrix = metrics.confusion(labels, guess, len(names))
    caption = f"{what}: true class down, guess across, in the order of the classes."
    picture = Picture(
        "confusion",
        "Confusion matrix",
        caption,
        evaluation.confusion_picture(matrix),
    )
    shares = metrics.per_class(matrix)
    rows = []
    for c in np.argsort(np.nan_to_num(shares, nan=2.0), kind="stable")[:WORST]:
        wrong = matrix[c].copy()
        wrong[c] = 0
        other = f"{names[wrong.argmax()]} ({wrong.max()})" if wrong.any() else ""
        if matrix[c].sum():
            rows.append([names[c], int(matrix[c].sum()), percent(shares[c]), other])
    heads = ["class", "images", "right", "most often taken for"]
    return [picture], [Table("Worst classes", heads, rows)]


def asked(job: Job) -> dict:
    """What tells one evaluation from another."""
    return {
        "task": job.task,
        "weights": job.weights,
        "weights_sha256": job.backbone.sha256,
        "architecture": job.backbone.variant,
        "model": json.loads(json.dumps(job.backbone.architecture)),
        "code": workdir.code(),
        "train": job.train,
        "val": job.val,
        "tests": job.tests,
        "labels": job.labels,
        "fingerprints": job.fingerprints,
        "settings": json.loads(json.dumps(vars(job.settings))),
    }


def differences(before: Mapping, now: Mapping) -> list[str]:
    """Keys whose values differ; of values that are dicts, the keys in them."""
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{key}.{inner}" for inner in differences(old, new)]
        elif old != new:
            found.append(key)
    return found


def write(job: Job, outcome: Outcome, seconds: float) -> dict:
    """Write all files of an evaluation; returns what results.json holds."""
    first = next(iter(outcome.metrics))
    about = asked(job) | {
        "metric": first,
        "metrics": outcome.metrics,
        "data": outcome.data,
        "notes": outcome.notes,
        "warnings": job.warnings,
        "versions": workdir.versions(),
        "devices": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "seconds": round(seconds, 1),
        "finished": workdir.now(),
    }
    (job.out / "pictures").mkdir(parents=True, exist_ok=True)
    for picture in outcome.pictures:
        workdir.save_picture(job.out, picture.name, picture.pixels)
    predictions.write(job.out, outcome.images)
    workdir.write_text(job.out / "report.html", _page(about, outcome))
    text = json.dumps(about, indent=2, allow_nan=True) + "\n"
    workdir.write_text(job.out / "results.json", text)
    _append(job.out / "results.csv", about)
    return about


def _append(path: pathlib.Path, about: dict) -> None:
    """One more line of a table, which gets its heading first."""
    value = about["metrics"][about["metric"]]
    line = about | {"value": value, "metrics": json.dumps(about["metrics"])}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(line)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())


def _page(about: dict, outcome: Outcome) -> str:
    """report.html."""
    name = f"{about['task']}: {pathlib.Path(about['weights']).name}"
    facts = f"{about['architecture']} \N{MIDDLE DOT} {about['val']}"
    parts = [f"<h1>{page.text(name)}</h1>", f'<p class="soft">{page.text(facts)}</p>']
    tiles = "".join(
        f'<div class="card"><dt>{page.text(key)}</dt><dd>{page.text(shown(key, value))}'
        "</dd></div>"
        for key, value in list(outcome.metrics.items())[:8]
    )
    parts.append(f"<dl>{tiles}</dl>")
    for text in (*about["warnings"], *about["notes"]):
        parts.append(f"<p>{page.text(text)}</p>")
    for picture in outcome.pictures:
        data = io.BytesIO()
        Image.fromarray(picture.pixels).save(data, format="PNG")
        parts.append(
            page.figure("picture", picture.title, picture.caption, data.getvalue())
        )
    for table in outcome.tables:
        body = page.grid(table.heads, table.rows)
        parts.append(f'<h2>{page.text(table.title)}</h2><div class="card">{body}</div>')
    folded = {
        "All metrics": list(outcome.metrics.items()),
        "Settings": list(about["settings"].items()),
        "Data": list(outcome.data.items()),
        "Versions": list(about["versions"].items()),
        "Weights": [(k, about[k]) for k in ("weights", "weights_sha256")],
        "Run": [(k, about[k]) for k in ("devices", "seconds", "finished")],
    }
    inner = "".join(page.folded(k, page.table(rows)) for k, rows in folded.items())
    parts.append(f'<h2>Details</h2><div class="card">{inner}</div>')
    return page.document(name, parts)


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.1f} %"


def shown(metric: str, value: float) -> str:
    """A metric for people: shares in per cent, counts whole, errors as they are."""
    if isinstance(value, int):
        return str(value)
    if 0 <= value <= 1 and metric not in depth.ERRORS:
        return percent(value)
    return f"{value:.4g}"
