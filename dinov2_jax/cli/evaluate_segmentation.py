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
from dinov2_jax.cli import dense_checks, head_files, setting, windows
from dinov2_jax.cli.results import Job, Outcome, Picture, Table, percent
from dinov2_jax.cli.setting import Range, Setting
from dinov2_jax.data import classes, dense, dense_views, renumbered
from dinov2_jax.evals import probe, segmentation
from dinov2_jax.models import probes, vit
from dinov2_jax.viz import dense as viz

SETTINGS = (
    shared.TRAINING
    | dense_checks.SETTINGS
    | setting.Table(
        blocks=Setting(1, "last blocks that the head sees", setting.COUNT),
        classes=Setting(
            0, "classes of a pairs: spec without classes.txt", setting.WHOLE
        ),
        first_id=Setting(
            0, "id of class 0 in a pairs: spec; lower ones are ignored", setting.WHOLE
        ),
        ignore_id=Setting(
            255,
            "id without a class in a pairs: spec; -1 for none",
            Range("-1 to 2^31 - 1", lambda x: -1 <= x < 2**31),
        ),
        ids=Setting(
            "",
            "ID:CLASS,... of a pairs: spec, such as 0:0,255:1 or 7:ignore",
            setting.TEXT,
        ),
        absent_classes=Setting(
            False, "whether named classes may occur in no map", setting.SWITCH
        ),
        steps=Setting(40_000, "steps of the training", setting.COUNT),
        warmup=Setting(1500, "steps in which the rate rises", setting.WHOLE),
        warmup_start=Setting(
            1e-6, "share of the learning rate at step 0", setting.SHARE
        ),
        weight_decay=Setting(1e-4, "of AdamW", setting.NOT_NEGATIVE),
        crop=Setting(512, "side of crops and windows, pixels", setting.COUNT),
        side=Setting(
            512, "shorter side of an image at ratio and scale 1, pixels", setting.COUNT
        ),
        ratio=Setting(
            (0.5, 2.0), "least and most that training enlarges it", setting.POSITIVE
        ),
        most=Setting(0.75, "share of a crop that one class may have", setting.SHARE),
        recolor=Setting(True, "whether training changes colours", setting.SWITCH),
        stride=Setting(341, "from window to window, pixels", setting.COUNT),
        scales=Setting(
            (1.0,), "of side, whose predictions are joined", setting.POSITIVE
        ),
        mirrored=Setting(
            False, "whether mirrored images are joined, too", setting.SWITCH
        ),
    )
)
"""Source: arXiv:2304.07193 section 7.4, the linear protocol."""


def inputs(job: Job) -> dict[str, Any]:
    """What the task reads; val's classes are numbered as those of train, by name.

    Raises: ValueError, before anything is opened, for settings that cannot be.
    """
    s = job.settings
    shared.require_rising(s, "ratio")
    segmentation.starts(s.crop, s.crop, s.stride)
    _blocks(job.backbone.model, s.blocks)
    _rate(s)
    found = shared.inputs(job, functools.partial(_opened, s=s))
    if "train" in found:
        found["val"] = _numbered_as(found["train"], found["val"])
    return found


def _numbered_as(train: dense.Pairs, val: dense.Pairs) -> dense.Pairs:
    """Pairs whose labels are numbers of the training classes."""
    numbers = classes.numbers(train.classes, val.classes, "val")
    if tuple(numbers) == tuple(range(len(train.classes))):
        return val
    return renumbered.Renumbered(val, tuple(numbers.tolist()), train.classes)


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
    train, val = job.inputs.get("train"), job.inputs["val"]
    blocks, rate = _blocks(model, s.blocks), _rate(s)
    apply = shared.features(model, blocks, True, s.compute)
    head = probes.LinearSegmentation(len(val.classes))
    told = head_files.note(
        job, blocks, True, (s.crop, s.crop), classes=list(val.classes)
    )
    if s.head:
        kind = probes.LinearSegmentation
        head, variables = head_files.given_head(job, kind, told)
        _check_head(variables, head, len(blocks) * model.width, len(val.classes))
    dense_checks.labels(job, _named(job.val, s))
    if not s.head:
        variables, _ = shared.trained(
            job,
            head,
            apply,
            _loss,
            probe.adamw(rate, s.weight_decay, s.betas),
            train,
            dense_views.SegmentationViews(
                crop=s.crop, side=s.side, ratio=s.ratio, most=s.most, recolor=s.recolor
            ),
            (s.crop, s.crop),
            (True,),
        )
        if jax.process_index() == 0:
            path = job.out / "head.safetensors"
            head_files.save_head(path, "segmentation", variables, told)
    total, shown, images = _judged(job, head, apply, variables, val)
    data = shared.splits(job, train, val)
    return _outcome(total, shown, val.classes, data, images)


def _named(spec: str, s: Any) -> bool:
    """Whether classes have names of the user's own, not numbers or a layout's."""
    return spec.partition(":")[0] in ("pairs", "tfds") and not s.classes


def _opened(spec: str, s: Any) -> dense.Pairs:
    """The pairs of a spec."""
    return dense.open_labels(
        spec,
        classes=s.classes or None,
        first=s.first_id,
        ignore=s.ignore_id,
        ids=ids_of(s.ids),
        **shared.decoding(s),
    )


def ids_of(text: str) -> dict[int, int] | None:
    """Id -> class of a setting like 0:0,255:1,7:ignore, or None for none."""
    found = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        one, _, label = part.partition(":")
        known = one.isdecimal() and (label.isdecimal() or label == "ignore")
        if not known or int(one) in found:
            raise errors.InputError(
                f"ids={text} is not ID:CLASS,... with each id once, such as 0:0,255:1 "
                "or 7:ignore."
            )
        found[int(one)] = dense.IGNORED if label == "ignore" else int(label)
    if found and max(found.values()) < 0:
        raise errors.InputError(f"ids={text} is not ID:CLASS,...: it names no class.")
    return found or None


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
) -> tuple[np.ndarray, list[tuple], dict]:
    """The confusion matrix over a set, some images with truth and prediction, and the
    scores of each image.

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
    records, scores = [], []
    with contextlib.closing(shared.mine(val, s)) as pairs:
        meter = shared.meter(val, s)
        made = windows.predictions(pairs, logits, size, s)
        for done, (number, pair, predicted) in enumerate(made, 1):
            own = segmentation.confusion(pair.target, predicted, classes)
            total += own
            records.append(number)
            scores.append(_of_image(own))
            if len(shown) < s.pictures:
                shown.append((*pair, predicted))
            if done % 50 == 0 or done == meter.stop:
                meter.show(done, "judged")
    images = shared.of_images(val, records, scores)
    return shared.added(total).astype(np.int64), shown, images


def _of_image(matrix: np.ndarray) -> dict[str, float]:
    """The scores of one image; NaN if it has no label."""
    known = int(matrix.sum())
    found = segmentation.scores(matrix if known else np.eye(len(matrix)))
    scores = {"miou": found.miou, "pixel_accuracy": found.pixel_accuracy}
    if not known:
        scores = dict.fromkeys(scores, float("nan"))
    return scores | {"labelled_pixels": known}


def _outcome(
    total: np.ndarray,
    shown: list[tuple],
    classes: tuple[str, ...],
    data: dict,
    images: dict,
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
    return Outcome(metrics, data, pictures, [table], [images])
