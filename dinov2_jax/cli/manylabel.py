"""Logistic regression of images with several labels, as of VOC2007."""

import pathlib
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.cli import frozen, predictions, results
from dinov2_jax.cli.results import Job, Outcome, Table
from dinov2_jax.data import classes, manylabels
from dinov2_jax.evals import manylabel

METRICS = ("map", "map11")


def run(
    job: Job, sets: dict[str, frozen.Set], rows: list[np.ndarray], **settings
) -> Outcome:
    """Mean average precision of one class against the rest.

    Args:
        job: its settings' metric is one of METRICS.
        sets: train and val.
        rows: their features, as the classifier takes them.
        settings: of `manylabel.sweep`.
    Raises: ValueError if labels are missing or train lacks a class of val.
    """
    names, targets = zip(*(_labels(job, split, one) for split, one in sets.items()))
    numbers = classes.numbers(names[0], names[1], "val")
    wanted = np.zeros((len(targets[1]), len(names[0])), np.int8)
    wanted[:, numbers] = targets[1]
    eleven = job.settings.metric == "map11"
    found = manylabel.sweep(rows[0], targets[0], eleven=eleven, **settings)
    scores = manylabel.scores(found.fit, rows[1])
    both = {
        name: manylabel.average_precisions(scores, wanted, name == "map11")
        for name in METRICS
    }
    counting = both[job.settings.metric]
    if np.isnan(counting).all():
        raise errors.InputError(
            f"{job.val}: no image has any of the {len(names[0])} labels."
        )
    means = {name: float(np.nanmean(each)) for name, each in both.items()}
    metrics = {job.settings.metric: means[job.settings.metric]} | means
    more = {"c": found.c, "held_out_map": float(found.accuracies.max())}
    lines = [
        [name, int((wanted[:, k] == 1).sum()), results.percent(counting[k])]
        for k, name in enumerate(names[0])
        if not np.isnan(counting[k])
    ]
    table = Table("Classes", ["class", "images", "average precision"], lines)
    data = {split: one.about for split, one in sets.items()}
    words, val = np.array(names[0], object), sets["val"]
    columns = {
        "labels": [words[row == 1].tolist() for row in wanted],
        "scores": list(scores.astype(np.float32)),
    }
    images = [predictions.of("val", val.names, val.records, columns)]
    notes = [f"scores of predictions.parquet are those of {', '.join(names[0])}"]
    return Outcome(metrics | more, data, [], [table], images, notes)


def inputs(job: Job) -> dict[str, Any]:
    """What the task reads; raises ValueError if labels are missing or do not fit."""
    if job.labels and set(job.labels) != {"train", "val"}:
        raise errors.InputError(
            "logreg takes --labels train=FILE --labels val=FILE, both."
        )
    found, names = frozen.inputs(job), []
    for split in ("train", "val"):
        if not job.labels:
            names.append(manylabels.classes_of_tfds(getattr(job, split)))
            continue
        source = found[split]
        records = frozen.chosen(len(source), job.settings.limit)
        path = pathlib.Path(job.labels[split]).expanduser()
        names.append(manylabels.of_file(path, [source.name(i) for i in records])[0])
    classes.numbers(*names, "val")
    return found


def _labels(job: Job, split: str, found: frozen.Set):
    """Classes, and targets [n K] of the images that have features."""
    if split in job.labels:
        path = pathlib.Path(job.labels[split]).expanduser()
        return manylabels.of_file(path, found.names)
    names, targets = manylabels.of_tfds(getattr(job, split))
    return names, targets[found.records]
