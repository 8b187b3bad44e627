"""Logistic regression on frozen features, its strength chosen on a part of train."""

from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.cli import doubts, frozen, manylabel, predictions, setting, sweeps
from dinov2_jax.cli.results import Job, Outcome, classified
from dinov2_jax.cli.setting import Setting
from dinov2_jax.evals import knn, logreg, metrics, strengths
from dinov2_jax.evals import manylabel as evals

METRICS = ("top1", "mean_per_class", *manylabel.METRICS)
SETTINGS = frozen.IMAGES | setting.Table(
    lowest=Setting(-6.0, "power of ten of the smallest C", setting.EXPONENT),
    highest=Setting(5.0, "power of ten of the largest C", setting.EXPONENT),
    number=Setting(45, "values of C from the one to the other", setting.COUNT),
    held_out=Setting(0.1, "share of train that chooses C", setting.FRACTION),
    iterations=Setting(1000, "steps of L-BFGS, at most", setting.COUNT),
    tolerance=Setting(
        1e-12, "largest entry of the gradient at which it stops", setting.NOT_NEGATIVE
    ),
    dtype=Setting(
        "float64",
        "number format of the fit; float32 is for accelerators",
        setting.choice(*logreg.DTYPES),
    ),
    metric=Setting(
        "top1",
        "what counts; map and map11 where images have several labels",
        setting.choice(*METRICS),
    ),
    normalize=Setting(True, "whether features get unit length", setting.SWITCH),
    seed=Setting(0, "seed of the choice of held-out images", setting.WHOLE),
)


def inputs(job: Job) -> dict[str, Any]:
    """What the task reads: images of the same classes, or files of their labels."""
    s = job.settings
    if s.lowest > s.highest:
        raise errors.InputError(f"lowest={s.lowest} is above highest={s.highest}.")
    if s.metric in manylabel.METRICS:
        found = manylabel.inputs(job)
    elif job.labels:
        raise errors.InputError("--labels is for metric=map and metric=map11.")
    else:
        found = frozen.classified(job)
    rows = len(frozen.chosen(len(found["train"]), s.limit))
    logreg.held_out_rows(rows, s.held_out, s.seed)
    return found


def run(job: Job) -> Outcome:
    """Accuracy on the validation set of the classifier of all of train."""
    job = job.opened(inputs)
    s, backbone = job.settings, job.backbone
    many = s.metric in manylabel.METRICS
    apply = frozen.cls_of(backbone, s.compute)
    train, val = (frozen.split(job, name, apply) for name in ("train", "val"))
    if not many:
        for found in (train, val):
            frozen.require_classes(found)
        for found, split in ((train, "train"), (val, "val")):
            doubts.of_labels(job, split, found.labels, found.source.classes)
        val = frozen.numbered_as(train.source, val)
    doubts.of_equal_rows(job, train, val)
    rows = [found.rows for found in (train, val)]
    if s.normalize:
        rows = [np.asarray(knn.unit_rows(x)) for x in rows]
    settings = {
        "cs": sweeps.values(s),
        "held_out": s.held_out,
        "seed": s.seed,
        "iterations": s.iterations,
        "tolerance": s.tolerance,
        "dtype": s.dtype,
    } | sweeps.resumed(job, s.metric if many else "top1")
    if many:
        return manylabel.run(job, {"train": train, "val": val}, rows, **settings)
    count = len(train.source.classes)
    found = logreg.sweep(rows[0], train.labels, count, **settings)
    guess, scores = _predicted(found.fit, rows[1])
    matrix = metrics.confusion(val.labels, guess, count)
    shares = {
        "top1": float((guess == val.labels).mean()),
        "mean_per_class": float(np.nanmean(metrics.per_class(matrix))),
    }
    more = {
        "c": found.c,
        "held_out_top1": float(found.accuracies.max()),
        "loss": float(found.fit.loss[0]),
        "iterations": int(found.fit.iterations[0]),
    }
    names = train.source.classes
    parts = classified(val.labels, guess, names, "logistic regression")
    columns = predictions.classes(val.labels, guess, scores, names)
    return Outcome(
        {s.metric: shares[s.metric]} | shares | more,
        {"train": train.about, "val": val.about},
        *parts,
        [predictions.of("val", val.names, val.records, columns)],
    )


def _predicted(
    fitted: strengths.Fit, rows: np.ndarray, block: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """(class [n], its probability [n]) of rows by the first classifier."""
    parts = [
        predictions.softmax(evals.scores(fitted, rows[first : first + block]))
        for first in range(0, len(rows), block)
    ]
    guess, scores = zip(*parts)
    return np.concatenate(guess), np.concatenate(scores)
