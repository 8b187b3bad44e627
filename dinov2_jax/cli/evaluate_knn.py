"""k-NN on frozen features: the share of images whose neighbours guess their class."""

from typing import Any

import numpy as np

from dinov2_jax import errors, sharding
from dinov2_jax.cli import doubts, frozen, predictions, setting
from dinov2_jax.cli.results import Job, Outcome, classified, percent
from dinov2_jax.cli.setting import Setting
from dinov2_jax.evals import knn

SETTINGS = frozen.IMAGES | setting.Table(
    neighbors=Setting(
        (10, 20, 100, 200), "nearest training images that vote", setting.COUNT
    ),
    temp=Setting(0.07, "temperature of the votes' softmax", setting.TEMPERATURE),
    block=Setting(1024, "validation images at once", setting.COUNT),
    few=Setting(
        (0,), "images a class to search among, besides all; 0 for none", setting.WHOLE
    ),
    tries=Setting(5, "random choices of these few", setting.COUNT),
    seed=Setting(0, "seed of these choices", setting.WHOLE),
)


def inputs(job: Job) -> dict[str, Any]:
    """What the task reads: images of the same classes."""
    found, s = frozen.classified(job), job.settings
    train, most = found["train"], max(s.few)
    labels = getattr(train, "labels", None)
    if labels is not None:
        knn.require_few(labels[frozen.chosen(len(train), s.limit)], most)
    elif most * len(train.classes) > len(frozen.chosen(len(train), s.limit)):
        raise errors.InputError(
            f"few={most} images of {len(train.classes)} classes are more than train "
            "has; ask for fewer."
        )
    return found


def run(job: Job) -> Outcome:
    """Accuracy for each k, and with few images of each class, mean and deviation."""
    job = job.opened(inputs)
    s, backbone = job.settings, job.backbone
    apply = frozen.cls_of(backbone, s.compute)
    train, val = (frozen.split(job, name, apply) for name in ("train", "val"))
    for found in (train, val):
        frozen.require_classes(found)
    for found, split in ((train, "train"), (val, "val")):
        doubts.of_labels(job, split, found.labels, found.source.classes)
    doubts.of_equal_rows(job, train, val)
    val = frozen.numbered_as(train.source, val)
    above = [k for k in s.neighbors if k > len(train.rows)]
    if above:
        job.warn(
            f"neighbors={', '.join(map(str, above))}: there are only {len(train.rows)} "
            "training images, which all vote then."
        )
    shards = sharding.make_mesh().size
    votes = knn.voted(
        train.rows, train.labels, val.rows, s.neighbors, s.temp, s.block, shards
    )
    right = {k: float((guess == val.labels).mean()) for k, (guess, _) in votes.items()}
    metrics = {f"top1_k{k}": share for k, share in right.items()}
    best = max(right, key=right.get)
    metrics = {"top1": right[best], "k": best} | metrics
    for number in filter(None, s.few):
        for k, shares in _tries(s, number, train, val, shards).items():
            metrics[f"top1_k{k}_few{number}"] = float(np.mean(shares))
            metrics[f"top1_k{k}_few{number}_std"] = float(np.std(shares))
    names = train.source.classes
    parts = classified(val.labels, votes[best][0], names, f"k-NN of {best} neighbours")
    columns = predictions.classes(val.labels, *votes[best], names)
    others = [k for k in votes if k != best]
    columns |= {
        f"prediction_k{k}": np.array(names, object)[votes[k][0]] for k in others
    }
    return Outcome(
        metrics,
        {"train": train.about, "val": val.about},
        *parts,
        [predictions.of("val", val.names, val.records, columns)],
        _notes(right, best),
    )


def _notes(right: dict[int, float], best: int) -> list[str]:
    """How top1 was chosen, with the accuracy for each k."""
    each = ", ".join(f"{k}: {percent(share)}" for k, share in right.items())
    chosen = f"; top1 is the best of them, k={best}, chosen on val itself"
    return [f"accuracy by k: {each}{chosen if len(right) > 1 else ''}"]


def _tries(s, number: int, train, val, shards: int) -> dict[int, list[float]]:
    """k -> accuracy of each try with `number` training images of each class.

    A k above the number of these images is that number; and of one image a class the
    nearest decides, whatever k is.
    """
    ks: tuple[int, ...] = (1,)
    if number > 1:
        rows = number * len(np.unique(train.labels))
        ks = tuple(dict.fromkeys(min(k, rows) for k in s.neighbors))
    found: dict[int, list[float]] = {k: [] for k in ks}
    for attempt in range(s.tries):
        rng = np.random.default_rng([s.seed, number, attempt])
        some = knn.few(train.labels, number, rng)
        shares = knn.top1(
            train.rows[some],
            train.labels[some],
            val.rows,
            val.labels,
            ks,
            s.temp,
            s.block,
            shards,
        )
        for k, share in shares.items():
            found[k].append(share)
    return found
