"""AdamW as an optax chain: per-sub-network clipping, layer decay, two learning rates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov2_jax import tree

RATES = ("lr", "last_layer_lr", "weight_decay")
"""Schedules whose values `adamw` takes at each update."""


class Multipliers(NamedTuple):
    """Per-leaf factors; a stacked leaf's factor is an array along its layer axis."""

    lr: Any
    weight_decay: Any
    last_layer: Any


def multipliers(
    params: Any, layer_decay: float = 1.0, patch_embed_factor: float = 1.0
) -> Multipliers:
    """Learning-rate and weight-decay factors of every leaf.

    Args:
        params: {backbone, dino_head[, ibot_head]} of arrays or their shapes.
        layer_decay: factor r per block counted from the output; block i of n gets
            r^(n - i), embeddings and tokens r^(n + 1).
        patch_embed_factor: further factor of the patch embedding.
    Returns: trees like `params`.
    Raises: ValueError if a leaf is hit by no rule or by two.
    Source: arXiv:2304.07193 appendix B; the reference's `get_params_groups_with_decay`.
    """
    blocks = jax.tree.leaves(params["backbone"]["blocks"])
    depth = blocks[0].shape[0]
    first = layer_decay ** (depth + 1)
    per_block = layer_decay ** np.arange(depth, 0, -1.0)

    def stacked(name: str, leaf: Any) -> np.ndarray:
        return per_block.reshape(-1, *[1] * (leaf.ndim - 1)).astype(np.float32)

    tokens = "backbone/(cls_token|pos_embed|mask_token|register_tokens)"
    lr = {
        tokens: first,
        "backbone/patch_embed/.*": first * patch_embed_factor,
        "backbone/blocks/.*": stacked,
        "backbone/norm/.*": 1.0,
        "(dino|ibot)_head/.*": 1.0,
    }
    decay = {
        ".*/(bias|scale|gamma)": 0.0,
        f"{tokens}|.*/(kernel|v|g)": 1.0,
    }
    last = {".*/last_layer/.*": True, "(?!.*/last_layer/).*": False}
    return Multipliers(*(tree.by_rule(rules, params) for rules in (lr, decay, last)))


def clip_each(max_norm: float) -> optax.GradientTransformation:
    """Clip the norm of each top-level entry by itself; 0 turns it off.

    Differs: optax's own clipping has no 1e-6 in the divisor, the reference's has.
    """

    def clip(grads: Any) -> Any:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * factor, grads)

    def update(grads, state, params=None):
        if max_norm:
            grads = {name: clip(part) for name, part in grads.items()}
        return grads, state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def scale_by_rates(
    factors: Multipliers,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled weight decay and learning rate, each leaf with its own factors."""

    def update(updates, state, params, *, lr, last_layer_lr, weight_decay):
        def leaf(u, p, lr_factor, decay_factor, is_last):
            rate = (last_layer_lr if is_last else lr) * lr_factor
            return (-rate * (u + weight_decay * decay_factor * p)).astype(p.dtype)

        return jax.tree.map(leaf, updates, params, *factors), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def adamw(
    factors: Multipliers,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip: float = 3.0,
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of the reference.

    It has no clock: `update` takes the rates of the step, scalars named as in `RATES`.
    `lr` is the learning rate before the leaf's factor; `last_layer_lr` the same for
    prototypes, where 0 freezes them while their moments and their share of the
    clipping norm go on; `weight_decay` is multiplied by the learning rate. Its one
    count is that of the moments, by which Adam corrects their bias: it counts the
    updates that were applied, as the reference's does, not the steps that were tried.

    Args:
        factors: of `multipliers`.
        betas: decay of the two moments.
        eps: added to the square root of the second moment.
        clip: largest gradient norm of each sub-network, 0 for none.
    Source: arXiv:1711.05101; settings of arXiv:2304.07193 appendix B.
    """
    return optax.chain(
        clip_each(clip), optax.scale_by_adam(*betas, eps), scale_by_rates(factors)
    )
