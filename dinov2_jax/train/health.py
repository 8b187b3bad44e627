"""Signs of life of a step: the loss of self-distillation alone says little."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dinov2_jax.models import dino


def agreement(student: dino.Student, cls_targets: jax.Array) -> dict[str, jax.Array]:
    """Share of images whose student and teacher choose the same prototype.

    Args:
        student: its logits [B V K].
        cls_targets: [B U K]; each view is held against the teacher's last other one.
    """
    views = cls_targets.shape[1]
    chosen = jnp.argmax(student.cls_logits[:, :views], -1)
    wanted = jnp.roll(jnp.argmax(cls_targets, -1), 1, axis=1)
    return {"health/agreement": (chosen == wanted).mean(dtype=jnp.float32)}


def _spread(name: str, rows: jax.Array, mass: jax.Array) -> dict[str, jax.Array]:
    """Entropy, distance to uniform and dead share of [n K] probabilities."""
    prototypes = rows.shape[-1]
    total = jnp.maximum(mass.sum(), 1.0)
    logs = jnp.log(jnp.maximum(rows, 1e-30))
    entropy = -(jnp.sum(rows * logs, -1) * mass).sum() / total
    mean = (rows * mass[:, None]).sum(0) / total
    uniform = jnp.log(prototypes)
    kl = jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30))) + uniform * mean.sum()
    return {
        f"health/teacher_entropy_{name}": entropy,
        f"health/kl_to_uniform_{name}": kl,
        f"health/dead_prototypes_{name}": (mean < 0.1 / prototypes).mean(
            dtype=jnp.float32
        ),
        f"health/log_prototypes_{name}": uniform,
    }


def targets(found: Any, mask_weights: jax.Array) -> dict[str, jax.Array]:
    """How the teacher spreads over prototypes, for cls and for patches.

    Args:
        found: Targets with `cls` [B U K] and `patches` [G M K'].
        mask_weights: [G M] 0 in padding.
    Returns: per head the mean entropy of a target; the divergence of the mean target
        from uniform (0: all prototypes are used alike, ln K: one serves all); the
        share of prototypes with less than a tenth of their equal share; and ln K.
        Nothing is told of patches where a batch has room for none.
    Source: arXiv:2104.14294 section 5.3 (the two forms of collapse).
    """
    cls = found.cls.reshape(-1, found.cls.shape[-1])
    seen = _spread("dino", cls, jnp.ones(cls.shape[0]))
    if not mask_weights.size:
        return seen
    patches = found.patches.reshape(-1, found.patches.shape[-1])
    real = (mask_weights.reshape(-1) > 0).astype(jnp.float32)
    return seen | _spread("ibot", patches, real)


def update_ratios(updates: Any, params: Any) -> dict[str, jax.Array]:
    """Norm of the update over the norm of the weights, per sub-network."""
    return {
        f"health/update_ratio_{name}": optax.tree.norm(updates[name])
        / optax.tree.norm(params[name])
        for name in params
    }
