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
from dinov2_jax.cli import depth_errors
from dinov2_jax.cli.results import Job, Outcome, Picture
from dinov2_jax.data import dense, dense_views
from dinov2_jax.evals import depth, probe
from dinov2_jax.models import probes
from dinov2_jax.viz import dense as viz

SETTINGS = shared.TRAINING | {
    "method": "lin4",
    "bins": 256,  # of the linear heads
    "upsample": 4,  # of the linear heads
    "channels": 256,  # of the DPT head
    "min_depth": 1e-3,  # metres
    "max_depth": 10.0,  # metres
    "scale": 1000.0,  # values of a 16-bit PNG that make a metre
    "steps": 38_400,
    "lr": 1e-4,
    "warmup": 12_800,
    "warmup_start": 1e-3,
    "floor": 1e-8,  # share of lr at the end of the cosine
    "weight_decay": 0.01,
    "clip": 35.0,
    "gradient_weight": 0.5,
    "loss_warmup": 100,  # steps in which the loss sees only the mean error
    "border": (45, 472, 43, 608),  # pixels kept in training; zeros keep all
    "crop": (416, 544),  # pixels, height and width
    "degrees": 2.5,
    "eval_crop": "nyu",
    "mirrored": True,
}
"""Source: arXiv:2304.07193 section 7.4, for NYUd. The learning rate is in neither the
paper nor the model card; 1e-4 is usual with this schedule."""


METHODS = {"lin1": "linear depth", "lin4": "linear depth", "dpt": "DPT depth"}


def inputs(job: Job) -> dict[str, Any]:
    """What the task reads."""
    return shared.inputs(
        job, functools.partial(dense.open_depth, scale=job.settings.scale)
    )


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
    _check(s)
    val = job.inputs["val"]
    train = job.inputs.get("train", val)
    apply = shared.features(model, blocks(model.depth, s.method), False, s.compute)
    head = module(s, model.width)
    if s.head:
        # A file does not tell the range, nor how far its maps are enlarged.
        _, variables = shared.given_head(s.head, type(head))
        _check_head(head, variables, apply, job.backbone.params, s)
    else:
        optimizer = probe.adamw(_rate(s), s.weight_decay, s.betas, s.clip)
        variables, _ = shared.trained(
            job, head, apply, _loss(s), optimizer, train, _views(s, train), s.crop
        )
        if jax.process_index() == 0:
            path = job.out / "head.safetensors"
            shared.save_head(path, METHODS[s.method], variables)
    metrics, shown = depth_errors.judged(job, head, apply, variables, val)
    pictures = []
    if shown:
        caption = "Photograph, true and predicted depth on one scale; near is light."
        pixels = viz.depth_picture(*zip(*shown))
        pictures = [Picture("depth", "Predictions", caption, pixels)]
    data = {
        "val": {"spec": job.val, "images": min(len(val), s.limit or len(val))},
    }
    if "train" in job.inputs:
        data["train"] = {"spec": job.train, "images": len(train)}
    return Outcome(metrics, data, pictures)


def _check(s: Any) -> None:
    """Raises ValueError for settings that cannot be."""
    if s.method not in METHODS:
        raise errors.InputError(
            f"method={s.method} must be one of {', '.join(METHODS)}."
        )
    if s.eval_crop not in depth.CROPS:
        raise errors.InputError(
            f"eval_crop={s.eval_crop} must be one of {', '.join(depth.CROPS)}."
        )
    if len(s.crop) != 2 or len(s.border) != 4:
        raise errors.InputError(
            f"crop={s.crop} must be (height, width), border={s.border} (top, bottom, "
            "left, right)."
        )
    if not 0 < s.min_depth < s.max_depth:
        raise errors.InputError(
            f"min_depth={s.min_depth} must lie between 0 and max_depth={s.max_depth}."
        )


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


def _views(s: Any, source: dense.Pairs) -> dense_views.DepthViews:
    """The training crops; raises ValueError if the border is not of these images."""
    border = tuple(s.border) if any(s.border) else None
    if border is not None:
        shape = source[0].target.shape
        top, bottom, left, right = border
        if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
            raise errors.InputError(
                f"border={border} does not lie in images of {shape[0]}x{shape[1]} "
                "pixels, such as the first; set it to (0, 0, 0, 0) to keep all."
            )
    return dense_views.DepthViews(crop=s.crop, border=border, degrees=s.degrees)


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
