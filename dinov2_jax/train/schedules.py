"""Schedules: functions step -> value, step from 0, usable inside jit.

The cosine is written as base + (final - base) * sin^2, which keeps its precision in
float32 also near the end, where a difference of nearly equal numbers would not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dinov2_jax import errors

Schedule = Callable[[jax.Array], jax.Array]


def cosine(
    base: float,
    final: float,
    steps: int,
    warmup: int = 0,
    start: float = 0.0,
    freeze: int = 0,
) -> Schedule:
    """Linear warm-up, half a cosine, then the final value for ever.

    Args:
        base: value at the end of the warm-up.
        final: value from step `steps` on.
        steps: length of warm-up and cosine together.
        warmup: steps of the warm-up, both ends included: the first value is `start`,
            the last already `base`.
        start: first value.
        freeze: steps at the beginning whose value is 0 whatever the rest says.
    Returns: step -> value.
    Raises: ValueError if the warm-up does not fit into the steps.
    Source: the reference's `CosineScheduler`.
    """
    if not 0 <= warmup <= steps:
        raise errors.InputError(
            f"A warm-up of {warmup} steps does not fit into {steps} steps; shorten it."
        )

    def at(step: jax.Array) -> jax.Array:
        t = jnp.asarray(step).astype(float)
        up = start + (base - start) * t / max(warmup - 1, 1)
        angle = jnp.pi / 2 * (t - warmup) / max(steps - warmup, 1)
        down = base + (final - base) * jnp.sin(angle) ** 2
        value = jnp.where(t < warmup, up, jnp.where(t < steps, down, final))
        return jnp.where(t < freeze, 0.0, value)

    return at


def scaled_lr(
    base_lr: float, batch_size: int, rule: str, reference: int = 1024
) -> float:
    """Peak learning rate for a batch size.

    Args:
        base_lr: learning rate at a batch of `reference` images.
        batch_size: images a step over all devices.
        rule: `sqrt`, `linear` or `none`.
    Raises: ValueError for another rule.
    Source: arXiv:2304.07193 appendix B (square root).
    """
    ratio = batch_size / reference
    factors = {"sqrt": ratio**0.5, "linear": ratio, "none": 1.0}
    if rule not in factors:
        raise errors.InputError(
            f"lr scaling {rule!r} is unknown; choose one of {list(factors)}."
        )
    return base_lr * factors[rule]
