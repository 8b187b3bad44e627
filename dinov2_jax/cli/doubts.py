"""What makes a result doubtful although it is right: said as warnings, not refused."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax import escaping
from dinov2_jax.data import folder, walk
from dinov2_jax.data.record import Source


def of_labels(job: Any, split: str, labels: np.ndarray, names: Sequence[str]) -> None:
    """Warn of a set that shows little: of one class, or with classes without images.

    Args:
        job: to warn.
        split: train, val or the name of a test set.
        labels: [n] int, numbers of `names`.
        names: of the classes of this set.
    """
    counts = np.bincount(labels, minlength=len(names))
    of_one_class(job, f"images of {split}", counts, names)
    empty = [escaping.shown(names[i]) for i in np.flatnonzero(counts == 0)]
    if empty:
        some = ", ".join(empty[:3]) + ", ..." * (len(empty) > 3)
        job.warn(
            f"classes of {split} without an image: {len(empty)} of {len(names)} ({some})."
        )


def of_one_class(job: Any, what: str, counts: np.ndarray, names: Sequence[str]) -> None:
    """Warn if only one of all classes occurs.

    Args:
        job: to warn.
        what: is counted, such as images of val.
        counts: [K] of each class.
        names: [K] of the classes.
    """
    if (counts > 0).sum() == 1:
        only = escaping.shown(names[int(counts.argmax())])
        job.warn(
            f"all {what} are of one class, {only}: a guess that is always the same may "
            "be right."
        )


def of_empty_folders(job: Any, split: str, source: Source) -> None:
    """Warn of class folders without an image: they are no classes of the source."""
    if not isinstance(source, folder.Folder):
        return
    with os.scandir(source.root) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    names = {escaping.normalized(x) for x in folders if not walk.is_service(x)}
    empty = sorted(names - set(source.classes))
    if empty:
        some = ", ".join(map(escaping.shown, empty[:3])) + ", ..." * (len(empty) > 3)
        job.warn(f"class folders of {split} without an image: {len(empty)} ({some}).")


def of_equal_splits(job: Any) -> None:
    """Warn if a job is judged on what it learns from."""
    prints = job.fingerprints
    for split in prints:
        if split != "train" and prints[split] == prints.get("train"):
            job.warn(
                f"{split} has the same records as train: it is judged on what it "
                "learns from."
            )


def of_equal_rows(job: Any, train: Any, val: Any) -> None:
    """Warn of images that are in train and in val, under whatever names.

    Args:
        job: to warn.
        train, val: their features, of `frozen.features`.
    """
    if job.fingerprints["train"] == job.fingerprints["val"]:
        return  # which is said already
    known = {hash(row.tobytes()) for row in train.rows}
    count = sum(hash(row.tobytes()) in known for row in val.rows)
    if count:
        job.warn(
            f"{count} of {len(val.rows)} images of val have the very features of an "
            "image of train: they are copies, or show nothing."
        )
