"""Logistic regression of images with several labels, as of VOC2007."""

import pathlib

import numpy as np

from dinov2_jax import errors
from dinov2_jax.cli import frozen, results
from dinov2_jax.cli.results import Job, Outcome, Table
from dinov2_jax.data import manylabels
from dinov2_jax.evals import manylabel

METRICS = ("map", "map11")


def run(
    job: Job, sets: tuple[frozen.Set, frozen.Set], rows: list[np.ndarray], **settings
) -> Outcome:
    """Mean average precision of one class against the rest.

    Args:
        job: its settings' metric is one of METRICS.
        sets: of train and val.
        rows: their features, as the classifier takes them.
        settings: of `manylabel.sweep`.
    Raises: ValueError if labels are missing or the classes of the two sets differ.
    """
    if job.labels and set(job.labels) != {"train", "val"}:
        raise errors.InputError(
            "logreg takes --labels train=FILE --labels val=FILE, both."
        )
    classes, targets = zip(
        *(
            _labels(job, split, spec, one)
            for split, spec, one in zip(("train", "val"), (job.train, job.val), sets)
        )
    )
    if classes[0] != classes[1]:
        raise errors.InputError(
            "train and val list other classes; give splits of one set."
        )
    eleven = job.settings.metric == "map11"
    found = manylabel.sweep(rows[0], targets[0], eleven=eleven, **settings)
    scores = manylabel.scores(found.fit, rows[1])
    both = {
        name: manylabel.average_precisions(scores, targets[1], name == "map11")
        for name in METRICS
    }
    counting = both[job.settings.metric]
    if np.isnan(counting).all():
        raise errors.InputError(
            f"{job.val}: no image has any of the {len(classes[0])} labels."
        )
    means = {name: float(np.nanmean(each)) for name, each in both.items()}
    metrics = {job.settings.metric: means[job.settings.metric]} | means
    more = {"c": found.c, "held_out_map": float(found.accuracies.max())}
    lines = [
        [name, int((targets[1][:, k] == 1).sum()), results.percent(counting[k])]
        for k, name in enumerate(classes[0])
        if not np.isnan(counting[k])
    ]
    table = Table("Classes", ["class", "images", "average precision"], lines)
    data = {"train": sets[0].about, "val": sets[1].about}
    return Outcome(metrics | more, data, [], [table])


def _labels(job: Job, split: str, spec: str, found: frozen.Set):
    """Classes, and targets [n K] of the images that have features."""
    if split in job.labels:
        path = pathlib.Path(job.labels[split]).expanduser()
        return manylabels.of_file(path, found.names)
    classes, targets = manylabels.of_tfds(spec)
    return classes, targets[found.records]
