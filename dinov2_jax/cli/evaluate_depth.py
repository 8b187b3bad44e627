"""Monocular depth by a head on frozen features: training and errors in metres.

Specs are those of `data.dense.open_depth`. Besides the results, the folder gets
head.safetensors, which `load_head` reads, and the last checkpoint of the training.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors
from dinov2_jax.cli import dense as shared
from dinov2_jax.cli import dense_checks, depth_errors, head_files, setting
from dinov2_jax.cli.results import Job, Outcome, Picture
from dinov2_jax.cli.setting import Range, Setting
from dinov2_jax.data import dense, dense_views
from dinov2_jax.evals import depth, probe
from dinov2_jax.models import probes
from dinov2_jax.viz import dense as viz

METHODS = {"lin1": "linear depth", "lin4": "linear depth", "dpt": "DPT depth"}
"""Method -> kind of its head in convert.probes."""

SETTINGS = (
    shared.TRAINING
    | dense_checks.SETTINGS
    | setting.Table(
        method=Setting(
            "lin4", "head, over one or four blocks", setting.choice(*METHODS)
        ),
        bins=Setting(256, "depths that a linear head mixes", setting.COUNT),
        upsample=Setting(4, "times a linear head enlarges its map", setting.COUNT),
        channels=Setting(
            256, "of the DPT head", Range("2 to 2^31 - 1", lambda x: 2 <= x < 2**31)
        ),
        min_depth=Setting(1e-3, "nearest depth, metres", setting.POSITIVE),
        max_depth=Setting(10.0, "farthest depth, metres", setting.POSITIVE),
        scale=Setting(1000.0, "values of a map that make a metre", setting.POSITIVE),
        steps=Setting(38_400, "steps of the training", setting.COUNT),
        lr=Setting(1e-4, "peak of the learning rate", setting.POSITIVE),
        warmup=Setting(12_800, "steps in which the rate rises", setting.WHOLE),
        warmup_start=Setting(
            1e-3, "share of the learning rate at step 0", setting.SHARE
        ),
        floor=Setting(1e-8, "share of lr at the end of the cosine", setting.SHARE),
        weight_decay=Setting(0.01, "of AdamW", setting.NOT_NEGATIVE),
        clip=Setting(
            35.0, "largest norm of the gradient; 0 for any", setting.NOT_NEGATIVE
        ),
        gradient_weight=Setting(
            0.5, "weight of the loss of slopes", setting.NOT_NEGATIVE
        ),
        loss_warmup=Setting(
            100, "steps in which the loss sees the mean error alone", setting.WHOLE
        ),
        border=Setting(
            (45, 472, 43, 608),
            "top, bottom, left and right kept in training, pixels; zeros keep all",
            setting.WHOLE,
        ),
        kb_crop=Setting(
            False,
            "whether 352 x 1216 of the bottom's middle is kept, also when judging",
            setting.SWITCH,
        ),
        crop=Setting((416, 544), "height and width of a crop, pixels", setting.COUNT),
        degrees=Setting(
            2.5,
            "largest turn in training, degrees",
            Range("0 to 180", lambda x: 0 <= x <= 180),
        ),
        brightness=Setting(
            (0.75, 1.25), "least and most that training brightens", setting.POSITIVE
        ),
        eval_crop=Setting("nyu", "part that is judged", setting.choice(*depth.CROPS)),
        mirrored=Setting(
            True, "whether the mirrored image is judged, too", setting.SWITCH
        ),
    )
)
"""Source: arXiv:2304.07193 section 7.4, for NYUd; the augmentation is that of
configs/_base_/datasets/nyu.py in the Monocular-Depth-Estimation-Toolbox. The learning
rate is in neither the paper nor the model card; 1e-4 is usual with this schedule."""


def inputs(job: Job) -> dict[str, Any]:
    """What the task reads.

    Raises: ValueError, before anything is opened, for settings that cannot be.
    """
    s = job.settings
    shared.require_lengths(s, crop=2, border=4)
    shared.require_rising(s, "brightness")
    if s.min_depth >= s.max_depth:
        raise errors.InputError(
            f"min_depth={s.min_depth} must lie below max_depth={s.max_depth}."
        )
    blocks(job.backbone.model.depth, s.method)
    _rate(s)
    opened = functools.partial(
        dense.open_depth, scale=s.scale, kb_crop=s.kb_crop, **shared.decoding(s)
    )
    return shared.inputs(job, opened)


def run(job: Job) -> Outcome:
    """Train a head on one set of images and depth maps and judge it on another.

    Args:
        job: train and val are specs of `data.dense.open_depth`; the setting `method` is
            one of METHODS.
    Returns: the means of `depth.metrics` over images.
    Raises: ValueError, one line, for what does not fit together.
    """
    job = job.opened(inputs)
    s, model = job.settings, job.backbone.model
    train, val = job.inputs.get("train"), job.inputs["val"]
    seen, rate = blocks(model.depth, s.method), _rate(s)
    apply = shared.features(model, seen, False, s.compute)
    head = module(s, model.width)
    told = head_files.note(job, seen, False, s.crop, **_told(s))
    if s.head:
        _, variables = head_files.given_head(
            job, type(head), told, max_depth=s.max_depth, min_depth=s.min_depth
        )
        _check_head(head, variables, apply, job.backbone.params, s)
    border = tuple(s.border) if any(s.border) else None
    unknown = dense_checks.depths(job, border)
    if not s.head:
        optimizer = probe.adamw(rate, s.weight_decay, s.betas, s.clip)
        views = dense_views.DepthViews(
            crop=s.crop, border=border, degrees=s.degrees, brightness=s.brightness
        )
        variables, _ = shared.trained(
            job, head, apply, _loss(s), optimizer, train, views, s.crop
        )
        if jax.process_index() == 0:
            path = job.out / "head.safetensors"
            head_files.save_head(path, METHODS[s.method], variables, told)
    metrics, shown, images = depth_errors.judged(job, head, apply, variables, val)
    pictures = []
    if shown:
        caption = "Photograph, true and predicted depth on one scale; near is light."
        pixels = viz.depth_picture(*zip(*shown))
        pictures = [Picture("depth", "Predictions", caption, pixels)]
    data = shared.splits(job, train, val, without_truth=unknown)
    return Outcome(metrics, data, pictures, [], [images])


def _told(s: Any) -> dict:
    """What the depths of a head depend on, besides its tensors."""
    found = {key: getattr(s, key) for key in ("method", "min_depth", "max_depth")}
    return found if s.method == "dpt" else found | {"upsample": s.upsample}


def blocks(depth_of_model: int, method: str) -> tuple[int, ...]:
    """Numbers of the blocks that a head sees.

    Args:
        depth_of_model: blocks of the backbone.
        method: one of METHODS.
    Raises: ValueError if there are fewer than four, for a head over four.
    """
    if method == "lin1":
        return (depth_of_model - 1,)
    if depth_of_model < 4:
        raise errors.InputError(
            f"{method} sees 4 blocks, but these weights have {depth_of_model}; choose "
            "lin1."
        )
    even = tuple(depth_of_model * (i + 1) // 4 - 1 for i in range(4))
    return probes.DEPTH_BLOCKS.get(depth_of_model, even)


def module(s: Any, width: int) -> Any:
    """The head of a method."""
    if s.method == "dpt":
        widths = tuple(max(width // 2 ** (3 - i), 1) for i in range(4))
        return probes.DPTDepth(widths, s.channels, s.min_depth)
    return probes.LinearDepth(s.bins, s.min_depth, s.max_depth, s.upsample)


def _check_head(head: Any, variables: Any, apply: Callable, params: Any, s: Any):
    """Raises ValueError if a given head does not fit the features."""
    shape = jax.ShapeDtypeStruct((1, *s.crop, 3), np.uint8)
    layers = jax.eval_shape(apply, params, shape)
    wanted = jax.eval_shape(head.init, jax.random.key(0), layers)
    if jax.tree.map(jnp.shape, wanted) != jax.tree.map(jnp.shape, dict(variables)):
        raise errors.InputError(
            f"head={s.head} is for other features than method={s.method} gives of "
            "these weights; set the method, bins and channels it was trained with."
        )


def _rate(s: Any) -> Callable:
    """The learning rate."""
    return probe.rate(
        s.lr,
        s.steps,
        warmup=s.warmup,
        warmup_start=s.warmup_start,
        decay="cosine",
        floor=s.floor,
    )


def _loss(s: Any) -> Callable:
    """The loss of a head's output, enlarged to the truth."""

    def loss(made: jax.Array, target: jax.Array, step: jax.Array) -> jax.Array:
        made = probes.resize(made[..., None], target.shape[1:3])[..., 0]
        found = depth.sigmoid_log(
            made, target, step, max_depth=s.max_depth, warmup=s.loss_warmup
        )
        if not s.gradient_weight:
            return found
        slopes = depth.gradient(made, target, max_depth=s.max_depth)
        return found + s.gradient_weight * slopes

    return loss
