"""The errors of a depth head over a set of images."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, sharding
from dinov2_jax.cli import dense as shared
from dinov2_jax.cli.results import Job
from dinov2_jax.data import dense
from dinov2_jax.evals import depth
from dinov2_jax.models import probes


def judged(
    job: Job, head: Any, apply: Callable, variables: Any, val: dense.Pairs
) -> tuple[dict[str, float], list[tuple], dict]:
    """The mean errors over a set, some images with truth and prediction, and the errors
    of each image, NaN where none of its pixels counts.

    Every process judges a part of the set on its own devices.
    """
    s, mesh = job.settings, sharding.make_mesh(1, jax.local_devices())
    weights = jax.device_get((job.backbone.params, variables))
    weights = shared.everywhere(weights, mesh)
    size = shared.test_batch(s.test_batch, mesh)

    def once(weights: Any, images: jax.Array) -> jax.Array:
        made = head.apply(weights[1], apply(weights[0], images))
        made = jnp.clip(made, s.min_depth, s.max_depth)
        return probes.resize(made[..., None], images.shape[1:3])[..., 0]

    @jax.jit
    def forward(weights, images):
        made = once(weights, images)
        if not s.mirrored:
            return made
        return (made + once(weights, images[:, :, ::-1])[:, :, ::-1]) / 2

    found, shown, records = [], [], []
    with contextlib.closing(shared.mine(val, s)) as pairs:
        meter = shared.meter(val, s)
        for group in alike(pairs, size):
            images = np.stack([pair.image for _, pair in group])
            made = np.asarray(forward(weights, shared.put(images, size, mesh)))
            for (number, pair), one in zip(group, made):
                records.append(number)
                found.append(
                    depth.metrics(
                        one,
                        pair.target,
                        min_depth=s.min_depth,
                        max_depth=s.max_depth,
                        crop=s.eval_crop,
                    )
                )
                if len(shown) < s.pictures:
                    shown.append((*pair, one))
            meter.show(len(found), "judged")
    unknown = dict.fromkeys(depth.METRICS, float("nan"))
    images = shared.of_images(val, records, [one or unknown for one in found])
    return _mean(found), shown, images


def _mean(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean over the images of all processes that have a known pixel."""
    rows = [list(one.values()) for one in found if one]
    names = depth.METRICS
    count = shared.added(np.array([len(rows)]))[0]
    if not count:
        raise errors.InputError(
            "No pixel of any image has a known depth in the range and the crop; check "
            "scale, min_depth, max_depth and eval_crop."
        )
    total = shared.added(np.sum([np.zeros(len(names)), *rows], axis=0))
    return dict(zip(names, (float(x) for x in total / count)))


def alike(
    pairs: Iterator[tuple[int, dense.Pair]], most: int
) -> Iterator[list[tuple[int, dense.Pair]]]:
    """Pairs that follow each other and have one size, at most so many at once."""
    group = []
    for number, pair in pairs:
        shape = pair.image.shape
        if group and (len(group) == most or shape != group[0][1].image.shape):
            yield group
            group = []
        group.append((number, pair))
    if group:
        yield group
