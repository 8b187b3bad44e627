"""Training of a head on frozen features: one step, its learning rate, its optimiser."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dinov2_jax import errors


class State(NamedTuple):
    """A head and its optimiser between two steps."""

    step: jax.Array  # int32, updates so far
    params: Any
    stats: Any  # {batch_stats} of a head with batch norm, else {}
    opt: Any


def rate(
    lr: float,
    steps: int,
    *,
    warmup: int = 0,
    warmup_start: float = 0.0,
    decay: str = "linear",
    floor: float = 0.0,
) -> Callable[[jax.Array], jax.Array]:
    """Step -> learning rate: a decay, below a linear warm-up.

    Args:
        lr: peak, before the decay.
        steps: of the training.
        warmup: steps over which the rate grows to that of the decay.
        warmup_start: share of the decay's rate at step 0.
        decay: `linear` or `cosine`, to `floor` times lr at the end.
    Raises: ValueError for another decay, or a warm-up longer than the training.
    Source: mmcv's poly (power 1) and cosine schedules, which the reference uses.
    """
    if decay not in ("linear", "cosine"):
        raise errors.InputError(f"{decay=} must be linear or cosine.")
    if not 0 <= warmup <= steps:
        raise errors.InputError(f"{warmup=} steps of {steps}; give 0 to {steps}.")

    def at(step: jax.Array) -> jax.Array:
        done = jnp.minimum(step / steps, 1.0)
        left = (1 + jnp.cos(math.pi * done)) / 2 if decay == "cosine" else 1 - done
        rise = warmup_start + (1 - warmup_start) * jnp.minimum(
            step / max(warmup, 1), 1.0
        )
        full = lr * (floor + (1 - floor) * left)
        return jnp.where(step < warmup, full * rise, full)

    return at


def adamw(
    lr: Callable[[jax.Array], jax.Array],
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW; `clip` is the largest norm of the gradient, 0 for none."""
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    return optax.chain(*parts, optax.adamw(lr, *betas, weight_decay=weight_decay))


def start(
    head: Any, layers: Any, optimizer: optax.GradientTransformation, key: jax.Array
) -> State:
    """The state before the first step; `layers` are arrays or their shapes."""
    made = jax.jit(
        lambda key: head.init(key, jax.tree.map(lambda x: jnp.zeros(x.shape), layers))
    )(key)
    params = made.pop("params")
    return State(jnp.int32(0), params, made, optimizer.init(params))


def updates(
    head: Any,
    features: Callable[[Any, jax.Array], Any],
    loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    *options: Any,
    placed: Any = None,
) -> Callable[[State, Any, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """One update of a head as a jitted function.

    Args:
        head: a Flax module over what `features` gives.
        features: (frozen weights, images) -> layers; no gradient flows into them.
        loss: (output of the head, targets, step) -> float32 scalar.
        optimizer: of the head's parameters.
        options: further arguments of the head in training.
        placed: sharding of every leaf of the state; None leaves it to the compiler.
    Returns: (state, frozen weights, images [b H W 3], targets [b H W]) ->
        (state, loss). The state that is given is used up.
    """

    def update(state: State, frozen: Any, images: jax.Array, targets: jax.Array):
        layers = jax.lax.stop_gradient(features(frozen, images))

        def objective(params: Any):
            variables = {"params": params, **state.stats}
            made, stats = head.apply(
                variables, layers, *options, mutable=list(state.stats)
            )
            return loss(made, targets, state.step), stats

        found, grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        value, stats = found
        change, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, change)
        return State(state.step + 1, params, dict(stats), opt), value

    return jax.jit(update, donate_argnums=0, out_shardings=(placed, None))


def fit(
    update: Callable,
    state: State,
    frozen: Any,
    batches: Iterable[tuple[jax.Array, jax.Array]],
    tell: Callable[[int, float], None],
    every: int = 50,
) -> tuple[State, list[tuple[int, float]]]:
    """Train a head on batches.

    Args:
        update: of `updates`.
        state: before the first batch.
        frozen: weights of the backbone.
        batches: (images, targets), on the devices.
        tell: is given step and mean loss every so many steps, and at the end.
        every: steps.
    Returns: the state, and what was told.
    Raises: ValueError as soon as a mean loss is not finite.
    """
    losses, told, step = [], [], int(state.step)

    def report() -> None:
        mean = float(jnp.stack(losses).mean())
        losses.clear()
        if not math.isfinite(mean):
            raise errors.InputError(
                f"The loss of the head is {mean} by step {step}; lower lr, or look for "
                "targets that are not finite."
            )
        told.append((step, mean))
        tell(step, mean)

    for images, targets in batches:
        state, value = update(state, frozen, images, targets)
        losses.append(value)
        # At most a step behind: CPUs that queue many wait for each other for ever.
        jax.block_until_ready(losses[-2:-1])
        step += 1
        if step % every == 0:
            report()
    if losses:
        report()
    return state, told
