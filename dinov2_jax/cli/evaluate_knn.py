"""k-NN on frozen features: the share of images whose neighbours guess their class."""

from typing import Any

import numpy as np

from dinov2_jax import sharding
from dinov2_jax.cli import frozen, setting
from dinov2_jax.cli.results import Job, Outcome, classified
from dinov2_jax.cli.setting import Setting
from dinov2_jax.evals import knn

SETTINGS = frozen.IMAGES | setting.Table(
    neighbors=Setting(
        (10, 20, 100, 200), "nearest training images that vote", setting.COUNT
    ),
    temp=Setting(0.07, "temperature of the votes' softmax", setting.POSITIVE),
    block=Setting(1024, "validation images at once", setting.COUNT),
    few=Setting(
        (0,), "images a class to search among, besides all; 0 for none", setting.WHOLE
    ),
    tries=Setting(5, "random choices of these few", setting.COUNT),
    seed=Setting(0, "seed of these choices", setting.WHOLE),
)


def inputs(job: Job) -> dict[str, Any]:
    """What the task reads: images of the same classes."""
    return frozen.classified(job)


def run(job: Job) -> Outcome:
    """Accuracy for each k, and with few images of each class, mean and deviation."""
    job = job.opened(inputs)
    s, backbone = job.settings, job.backbone
    apply = frozen.cls_of(backbone, s.compute)
    train, val = (frozen.split(job, name, apply) for name in ("train", "val"))
    for found in (train, val):
        frozen.require_classes(found)
    val = frozen.numbered_as(train.source, val)
    shards = sharding.make_mesh().size
    guessed = knn.guesses(
        train.rows, train.labels, val.rows, s.neighbors, s.temp, s.block, shards
    )
    right = {k: float((guess == val.labels).mean()) for k, guess in guessed.items()}
    metrics = {f"top1_k{k}": share for k, share in right.items()}
    best = max(right, key=right.get)
    metrics = {"top1": right[best], "k": best} | metrics
    for number in filter(None, s.few):
        for k, shares in _tries(s, number, train, val, shards).items():
            metrics[f"top1_k{k}_few{number}"] = float(np.mean(shares))
            metrics[f"top1_k{k}_few{number}_std"] = float(np.std(shares))
    parts = classified(
        val.labels, guessed[best], train.source.classes, f"k-NN of {best} neighbours"
    )
    return Outcome(metrics, {"train": train.about, "val": val.about}, *parts)


def _tries(s, number: int, train, val, shards: int) -> dict[int, list[float]]:
    """k -> accuracy of each try with `number` training images of each class."""
    found: dict[int, list[float]] = {k: [] for k in s.neighbors}
    for attempt in range(s.tries):
        rng = np.random.default_rng([s.seed, number, attempt])
        some = knn.few(train.labels, number, rng)
        shares = knn.top1(
            train.rows[some],
            train.labels[some],
            val.rows,
            val.labels,
            s.neighbors,
            s.temp,
            s.block,
            shards,
        )
        for k, share in shares.items():
            found[k].append(share)
    return found
