"""One update: targets from the teacher, losses of the student, AdamW, EMA."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dinov2_jax.data.batch import Batch, normalize
from dinov2_jax.models import dino
from dinov2_jax.train import health, losses, optim
from dinov2_jax.train.schedules import Schedule
from dinov2_jax.train.state import Centers, TrainState


@struct.dataclass
class Targets:
    """Teacher probabilities; no gradient flows into them."""

    cls: jax.Array  # [B U K] float32
    patches: jax.Array  # [G M K'] float32


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything of a step that does not change from step to step.

    Fields: `schedules` holds lr, last_layer_lr, weight_decay, ema_rate (1 - teacher
    momentum) and teacher_temp; `targets` is `centered`, `sinkhorn` or `plain`;
    `accumulate` splits the student's pass into that many parts; after `max_rejected`
    non-finite steps in a row nothing is applied any more.
    """

    model: dino.DINO
    tx: optax.GradientTransformationExtraArgs
    schedules: Mapping[str, Schedule]
    targets: Callable[..., tuple[Targets, Centers]]
    dino_weight: float = 1.0
    koleo_weight: float = 0.1
    ibot_weight: float = 1.0
    student_temp: float = 0.1
    center_momentum: float = 0.9
    sinkhorn_iterations: int = 3
    accumulate: int = 1
    max_rejected: int = 5
    seed: int = 0


def centered(
    recipe: Recipe, seen: dino.Teacher, batch: Batch, centers: Centers, temp: jax.Array
) -> tuple[Targets, Centers]:
    """Targets by EMA centering, and the centres of the next step."""
    targets = Targets(
        losses.centered_targets(seen.cls_logits, centers.dino, temp),
        losses.centered_targets(seen.patch_logits, centers.ibot, temp),
    )
    cls = losses.mean_cls_logits(seen.cls_logits)
    patches = losses.mean_patch_logits(
        seen.patch_logits, batch.mask_weights, centers.ibot
    )
    momentum = recipe.center_momentum
    return targets, Centers(
        losses.next_center(centers.dino, cls, momentum),
        losses.next_center(centers.ibot, patches, momentum),
    )


def sinkhorn(
    recipe: Recipe, seen: dino.Teacher, batch: Batch, centers: Centers, temp: jax.Array
) -> tuple[Targets, Centers]:
    """Targets by Sinkhorn-Knopp over the whole batch; centres stay as they are."""
    mass, rounds = batch.mask_weights > 0, recipe.sinkhorn_iterations
    targets = Targets(
        losses.sinkhorn_targets(seen.cls_logits, temp, rounds),
        losses.sinkhorn_targets(seen.patch_logits, temp, rounds, mass),
    )
    return targets, centers


def plain(
    recipe: Recipe, seen: dino.Teacher, batch: Batch, centers: Centers, temp: jax.Array
) -> tuple[Targets, Centers]:
    """Targets without centering: what a collapsing run is made with."""
    targets = Targets(
        losses.centered_targets(seen.cls_logits, 0.0, temp),
        losses.centered_targets(seen.patch_logits, 0.0, temp),
    )
    return targets, centers


TARGETS = {"centering": centered, "sinkhorn": sinkhorn, "none": plain}


def teach(
    recipe: Recipe, teacher: Any, centers: Centers, batch: Batch, temp: jax.Array
) -> tuple[Targets, Centers]:
    """Targets of a batch from the teacher's parameters, and the next centres."""
    seen = recipe.model.apply(
        {"params": teacher}, batch.global_crops, batch.mask_indices, method="teacher"
    )
    seen = jax.tree.map(jax.lax.stop_gradient, seen)
    return recipe.targets(recipe, seen, batch, centers, temp)


def ssl_loss(
    params: Any, recipe: Recipe, batch: Batch, targets: Targets, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of DINO, KoLeo and iBOT, and its terms.

    Source: arXiv:2304.07193 section 4. KoLeo is added over global views and averaged
    over groups; a weight of 0 leaves its term out of the sum and of the computation.
    """
    out = recipe.model.apply(
        {"params": params},
        batch.global_crops,
        batch.local_crops,
        batch.masks,
        batch.mask_indices,
        method="student",
        rngs={"drop_path": key},
    )
    groups, (images, views) = batch.mask_indices.shape[0], batch.masks.shape[:2]
    pairs = losses.dino_pairs(out.cls_logits, targets.cls, recipe.student_temp)
    terms = {"dino_global": pairs[:views].sum(), "dino_local": pairs[views:].sum()}
    total = recipe.dino_weight * pairs.sum()
    if recipe.koleo_weight:
        by_view = out.cls.reshape(groups, -1, *out.cls.shape[1:])  # [G g U D]
        spread = jax.vmap(losses.koleo, in_axes=2)(by_view)  # [U G]
        terms["koleo"] = spread.sum(0).mean()
        total += recipe.koleo_weight * terms["koleo"]
    if recipe.ibot_weight:
        terms["ibot"] = losses.ibot(
            out.patch_logits,
            targets.patches,
            batch.mask_weights,
            images * views,
            recipe.student_temp,
        )
        total += recipe.ibot_weight * terms["ibot"]
    terms = {
        f"loss/{name}": value for name, value in (terms | {"total": total}).items()
    }
    return total, terms | health.agreement(out, targets.cls)


def ssl_grad(
    params: Any, recipe: Recipe, batch: Batch, targets: Targets, key: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradient of `ssl_loss` and its terms, in `recipe.accumulate` parts.

    A part is every n-th group, so that a batch sharded over devices stays where it
    is. The mean over parts is that of the whole batch: all terms are means over
    images or groups.
    """
    parts = recipe.accumulate
    grad = jax.grad(ssl_loss, has_aux=True)
    if parts == 1:
        return grad(params, recipe, batch, targets, key)
    groups = batch.mask_indices.shape[0]

    def split(x: jax.Array) -> jax.Array:
        rows, rest = x.shape[0] // groups, x.shape[1:]
        x = x.reshape(groups // parts, parts, rows, *rest).swapaxes(0, 1)
        return x.reshape(parts, groups // parts * rows, *rest)

    def part_grad(part):
        number, batch, targets = part
        return grad(params, recipe, batch, targets, jax.random.fold_in(key, number))

    def add(total, part):
        return jax.tree.map(lambda a, b: a + b / parts, total, part_grad(part)), None

    scanned = (jnp.arange(parts), *jax.tree.map(split, (batch, targets)))
    shapes = jax.eval_shape(part_grad, jax.tree.map(lambda x: x[0], scanned))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, scanned)[0]


def gradient(
    recipe: Recipe, state: TrainState, batch: Batch
) -> tuple[Any, dict[str, jax.Array], Targets, Centers]:
    """What a step finds out before it changes anything.

    Args:
        recipe, state, batch: as `train_step`.
    Returns: (gradient of the student, terms, the teacher's targets, next centres).
    """
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    batch = batch.replace(
        global_crops=normalize(batch.global_crops),
        local_crops=normalize(batch.local_crops),
    )
    temp = recipe.schedules["teacher_temp"](state.step)
    targets, centers = teach(recipe, state.teacher, state.centers, batch, temp)
    grads, terms = ssl_grad(state.params, recipe, batch, targets, key)
    return grads, terms, targets, centers


def train_step(
    recipe: Recipe, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
        recipe: what stays the same.
        state: before the step.
        batch: crops uint8 or already normalised; masks on their buffer.
    Returns: the state after the step, and float32 scalars to log. Where the loss or a
        gradient is not finite the old student, teacher, moments and centres stay, the
        step, which is the clock of all schedules, counts on and `rejected` counts such
        steps in a row. From the `max_rejected`-th on they stay for good: who reads the
        metrics a step late still finds the state that such a step was tried on.
    Source: the reference's `SSLMetaArch` and `do_train`.
    Differs: the reference's gradient scaler skips only the optimiser in such a step.
    """
    now = {name: at(state.step) for name, at in recipe.schedules.items()}
    grads, terms, targets, centers = gradient(recipe, state, batch)
    rates = {name: now[name] for name in optim.RATES}
    updates, opt_state = recipe.tx.update(grads, state.opt_state, state.params, **rates)
    params = optax.apply_updates(state.params, updates)
    teacher = optax.incremental_update(params, state.teacher, now["ema_rate"])
    norms = {name: optax.tree.norm(part) for name, part in grads.items()}
    finite = jnp.isfinite(terms["loss/total"] + sum(norms.values()))
    applied = finite & (state.rejected < recipe.max_rejected)
    kept = jax.tree.map(
        lambda new, old: jnp.where(applied, new, old),
        (params, teacher, opt_state, centers),
        (state.params, state.teacher, state.opt_state, state.centers),
    )
    rejected = jnp.where(applied, 0, state.rejected + 1)
    state = TrainState(state.step + 1, *kept, rejected)
    terms |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    now |= {"momentum": 1 - now["ema_rate"]}
    terms |= {f"sched/{name}": value for name, value in now.items()}
    terms |= health.targets(targets, batch.mask_weights)
    terms |= health.update_ratios(updates, params)
    return state, terms | {"health/rejected": state.rejected}
