"""Semantic segmentation by a linear head on frozen patches: training and mIoU.

Specs are those of `data.dense.open_labels`. Besides the results, the folder gets
head.safetensors, which `load_head` reads, and the last checkpoint of the training.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dinov2_jax import errors, sharding
from dinov2_jax.cli import dense as shared
from dinov2_jax.cli import frozen, windows
from dinov2_jax.cli.results import Job, Outcome, Picture, Table, percent
from dinov2_jax.data import dense, dense_views
from dinov2_jax.evals import probe, segmentation
from dinov2_jax.models import probes, vit
from dinov2_jax.viz import dense as viz

SETTINGS = shared.TRAINING | {
    "blocks": 1,  # the last so many
    "classes": 0,  # of a pairs: spec without classes.txt
    "first_id": 0,  # id of class 0 in a pairs: spec
    "ignore_id": 255,  # id without a class in a pairs: spec
    "steps": 40_000,
    "lr": 1e-3,
    "warmup": 1500,
    "warmup_start": 1e-6,
    "weight_decay": 1e-4,
    "crop": 512,  # pixels, side of the crops and of the windows
    "side": 512,  # pixels, shorter side of an image at ratio and scale 1
    "ratio": (0.5, 2.0),
    "most": 0.75,  # share of a crop that one class may have
    "recolor": True,
    "stride": 341,  # pixels from window to window
    "scales": (1.0,),
    "mirrored": False,  # mirrored views, too
}
"""Source: arXiv:2304.07193 section 7.4, the linear protocol."""


def inputs(job: Job) -> dict[str, Any]:
    """What the task reads."""
    return shared.inputs(job, functools.partial(_opened, s=job.settings))


def run(job: Job) -> Outcome:
    """Train a head on one set of images and label maps and judge it on another.

    Args:
        job: train and val are specs of `data.dense.open_labels`, of the same classes.
    Returns: miou, pixel_accuracy, mean_accuracy, what naming the most frequent class
        everywhere would score, and iou/NAME of every class that occurs; in 0..1.
    Raises: ValueError, one line, for what does not fit together.
    """
    job = job.opened(inputs)
    s, model = job.settings, job.backbone.model
    val = job.inputs["val"]
    train = job.inputs.get("train", val)
    frozen.require_same_classes(train, val)
    if len(s.ratio) != 2 or not 0 < s.ratio[0] <= s.ratio[1] or min(s.scales) <= 0:
        raise errors.InputError(
            f"ratio={s.ratio} must be (least, most), {s.scales=} above 0."
        )
    segmentation.starts(s.crop, s.crop, s.stride)
    blocks = _blocks(model, s.blocks)
    apply = shared.features(model, blocks, True, s.compute)
    head = probes.LinearSegmentation(len(train.classes))
    if s.head:
        head, variables = shared.given_head(s.head, probes.LinearSegmentation)
        _check_head(variables, head, len(blocks) * model.width, len(val.classes))
    else:
        variables, _ = shared.trained(
            job,
            head,
            apply,
            _loss,
            probe.adamw(_rate(s), s.weight_decay, s.betas),
            train,
            dense_views.SegmentationViews(
                crop=s.crop, side=s.side, ratio=s.ratio, most=s.most, recolor=s.recolor
            ),
            (s.crop, s.crop),
            (True,),
        )
        if jax.process_index() == 0:
            shared.save_head(job.out / "head.safetensors", "segmentation", variables)
    total, shown = _judged(job, head, apply, variables, val)
    data = {
        "val": {"spec": job.val, "images": min(len(val), s.limit or len(val))},
    }
    if "train" in job.inputs:
        data["train"] = {"spec": job.train, "images": len(train)}
    return _outcome(total, shown, val.classes, data)


def _opened(spec: str, s: Any) -> dense.Pairs:
    """The pairs of a spec."""
    return dense.open_labels(
        spec, classes=s.classes or None, first=s.first_id, ignore=s.ignore_id
    )


def _blocks(model: vit.ViT, count: int) -> tuple[int, ...]:
    """Numbers of the last blocks."""
    if not 1 <= count <= model.depth:
        raise errors.InputError(
            f"blocks={count}; these weights have {model.depth}, give 1 to that many."
        )
    return tuple(range(model.depth - count, model.depth))


def _check_head(variables: Any, head: Any, width: int, classes: int) -> None:
    """Raises ValueError if a given head is for other features or classes."""
    found = variables["params"]["bn"]["scale"].shape[0]
    if (found, head.classes) != (width, classes):
        raise errors.InputError(
            f"The head is for {found} channels and {head.classes} classes; the features "
            f"have {width} and the sets {classes}. Set method and blocks to the head's."
        )


def _rate(s: Any) -> Callable:
    """The learning rate."""
    return probe.rate(
        s.lr, s.steps, warmup=s.warmup, warmup_start=s.warmup_start, decay="linear"
    )


def _loss(logits: jax.Array, labels: jax.Array, step: jax.Array) -> jax.Array:
    """Of logits [b h w K] that are enlarged to their labels [b H W]."""
    return segmentation.cross_entropy(probes.resize(logits, labels.shape[1:3]), labels)


def _judged(
    job: Job, head: Any, apply: Callable, variables: Any, val: dense.Pairs
) -> tuple[np.ndarray, list[tuple]]:
    """The confusion matrix over a set, and some images with truth and prediction.

    Every process judges a part of the set on its own devices.
    """
    s, mesh = job.settings, sharding.make_mesh(1, jax.local_devices())
    weights = jax.device_get((job.backbone.params, variables))
    weights = shared.everywhere(weights, mesh)
    size, classes = shared.test_batch(s.test_batch, mesh), len(val.classes)

    @jax.jit
    def forward(weights, images):
        return head.apply(weights[1], apply(weights[0], images))

    def logits(images: np.ndarray) -> np.ndarray:
        made = forward(weights, shared.put(images, size, mesh))
        return np.asarray(made)[: len(images)]

    total, shown = np.zeros((classes, classes), np.int64), []
    with contextlib.closing(shared.mine(val, s)) as pairs:
        meter = shared.meter(val, s)
        made = windows.predictions(pairs, logits, size, s)
        for done, (pair, predicted) in enumerate(made, 1):
            total += segmentation.confusion(pair.target, predicted, classes)
            if len(shown) < s.pictures:
                shown.append((*pair, predicted))
            if done % 50 == 0 or done == meter.stop:
                meter.show(done, "judged")
    return shared.added(total).astype(np.int64), shown


def _outcome(
    total: np.ndarray, shown: list[tuple], classes: tuple[str, ...], data: dict
) -> Outcome:
    """Metrics, pictures and the table of classes, from the confusion matrix."""
    found = segmentation.scores(total)
    most = total.sum(1).max() / total.sum()
    metrics = {
        "miou": found.miou,
        "pixel_accuracy": found.pixel_accuracy,
        "mean_accuracy": found.mean_accuracy,
        # One class everywhere has its own share as IoU; the other classes have 0.
        "majority_miou": float(most / (total.sum(1) > 0).sum()),
        "majority_accuracy": float(most),
    }
    rows = []
    for i in np.argsort(np.nan_to_num(found.iou, nan=2.0), kind="stable"):
        if not np.isnan(found.iou[i]):
            metrics[f"iou/{classes[i]}"] = float(found.iou[i])
            rows.append([classes[i], percent(found.iou[i]), int(total[i].sum())])
    pictures = []
    if shown:
        caption = "Photograph, truth and prediction; dark where ignored."
        pixels = viz.segmentation_picture(*zip(*shown), len(classes))
        pictures = [Picture("segmentation", "Predictions", caption, pixels)]
    table = Table("Classes, worst first", ["class", "IoU", "pixels"], rows)
    return Outcome(metrics, data, pictures, [table])
