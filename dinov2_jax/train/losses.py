"""Targets and losses of DINOv2; all in float32, for the whole batch at once."""

import jax
import jax.numpy as jnp

from dinov2_jax import errors
from dinov2_jax.models import heads

EXACT = jax.lax.Precision.HIGHEST
"""Of sums of products: by default TPUs and GPUs round float32 factors first."""


def centered_targets(
    logits: jax.Array, center: jax.Array, temp: jax.Array
) -> jax.Array:
    """Teacher probabilities, centred by a running mean.

    Args:
        logits: [... K] teacher logits.
        center: [K] running mean of the logits of earlier steps.
        temp: teacher temperature, > 0.
    Returns: [... K] float32, each row sums to 1.
    Source: arXiv:2104.14294 section 3.1.
    """
    return jax.nn.softmax((logits.astype(jnp.float32) - center) / temp, axis=-1)


def sinkhorn_targets(
    logits: jax.Array,
    temp: jax.Array,
    iterations: int = 3,
    mass: jax.Array | None = None,
) -> jax.Array:
    """Teacher probabilities whose sums over the batch are equal for all prototypes.

    Args:
        logits: [... K] teacher logits; all leading axes count as samples.
        temp: teacher temperature, > 0.
        iterations: of the Sinkhorn-Knopp algorithm, >= 1.
        mass: [...] 1 for a sample, 0 for padding that takes no part; None for all 1.
    Returns: [... K] float32, each sample's row sums to 1, padding is 0.
    Source: arXiv:2006.09882 section 3.1; arXiv:2304.07193 section 4.
    Differs: the largest logit is subtracted first, so that a large logit cannot
        overflow; the factor cancels in the first normalisation.
    """
    logits = logits.astype(jnp.float32) / temp
    mass = jnp.ones(logits.shape[:-1]) if mass is None else mass.astype(jnp.float32)
    samples, prototypes = jnp.maximum(mass.sum(), 1.0), logits.shape[-1]
    every = tuple(range(logits.ndim - 1))
    real = jnp.where(mass[..., None] > 0, logits, -jnp.inf)
    largest = jnp.max(real, initial=-jnp.inf)  # of no sample at all, too
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    q = jnp.where(mass[..., None] > 0, jnp.exp(logits - largest), 0.0)
    q = q / _positive(q.sum())
    for _ in range(iterations):
        q = q / _positive(q.sum(every)) / prototypes
        q = q / _positive(q.sum(-1, keepdims=True)) / samples
    return q * samples


def _positive(total: jax.Array) -> jax.Array:
    """A divisor that is never 0: where there is no mass, 1."""
    return jnp.where(total == 0, 1.0, total)


def next_center(center: jax.Array, mean: jax.Array, momentum: float = 0.9) -> jax.Array:
    """The centre of the next step: [K] old centre and [K] mean of this step's logits.

    Source: arXiv:2104.14294 eq. 4. The reference applies it one step later, too.
    """
    return center * momentum + mean * (1 - momentum)


def mean_cls_logits(logits: jax.Array) -> jax.Array:
    """[B U K] -> [K] float32 mean over all rows."""
    return logits.astype(jnp.float32).mean((0, 1))


def mean_patch_logits(
    logits: jax.Array, weights: jax.Array, empty: jax.Array | float = 0.0
) -> jax.Array:
    """Mean of the masked patches' logits inside each group, then over groups.

    Args:
        logits: [G M K].
        weights: [G M] 0 in padding.
        empty: the mean where nothing is masked, [K] or a scalar.
    Returns: [K] float32; as in the reference a group with fewer patches counts as
        much as one with more.
    Differs: a group without masked patches does not count; the reference divides by 0.
    """
    real = (weights > 0).astype(jnp.float32)
    total = jnp.einsum("gmk,gm->gk", logits.astype(jnp.float32), real, precision=EXACT)
    count = real.sum(1)
    groups = (count > 0).sum()
    mean = (total / jnp.maximum(count, 1.0)[:, None]).sum(0) / jnp.maximum(groups, 1)
    return jnp.where(groups > 0, mean, empty)


def dino_pairs(student: jax.Array, targets: jax.Array, temp: float = 0.1) -> jax.Array:
    """Cross-entropy of each student view with every other teacher view, by pair.

    Args:
        student: [B V K] head logits; views 0..U-1 are the teacher's own views.
        targets: [B U K] float32 probabilities over K; their gradient is stopped.
        temp: student temperature, > 0.
    Returns: [V U] float32; the sum over all pairs is the DINO loss, the mean over
        images and the V*U - U pairs of two different views; 0 where the views are
        one. Rows 0..U-1 hold the global term, the others the local one.
    Raises: ValueError if B or K differ, or there is no pair of different views.
    Source: arXiv:2104.14294 eq. 3; equals the reference's local and global terms.
    """
    if student.shape[::2] != targets.shape[::2]:
        raise errors.InputError(
            f"{student.shape=} and {targets.shape=} differ in B or K."
        )
    (b, v, _), u = student.shape, targets.shape[1]
    if v * u == u:
        raise errors.InputError(
            f"{v} student and {u} teacher views make no pair; add views."
        )
    logp = jax.nn.log_softmax(student.astype(jnp.float32) / temp)
    targets = jax.lax.stop_gradient(targets)
    pairs = -jnp.einsum("bvk,buk->vu", logp, targets, precision=EXACT) / b
    return jnp.where(jnp.eye(v, u, dtype=bool), 0.0, pairs) / (v * u - u)


def ibot(
    student: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    crops: int,
    temp: float = 0.1,
) -> jax.Array:
    """Cross-entropy at the masked patches, averaged inside each crop.

    Args:
        student: [G M K] head logits at the masked patches.
        targets: [G M K] float32 probabilities; their gradient is stopped.
        weights: [G M] 1 / number of masked patches of the crop, 0 in padding.
        crops: number of all global crops of the batch, masked or not.
        temp: student temperature, > 0.
    Returns: float32 scalar, the sum over patches divided by `crops`.
    Source: arXiv:2111.07832 eq. 2; arXiv:2304.07193 section 4.
    """
    logp = jax.nn.log_softmax(student.astype(jnp.float32) / temp)
    targets = jax.lax.stop_gradient(targets)
    entropy = -jnp.einsum("gmk,gmk->gm", logp, targets, precision=EXACT)
    return (jnp.where(weights > 0, entropy, 0.0) * weights).sum() / crops


def koleo(features: jax.Array) -> jax.Array:
    """Kozachenko-Leonenko spread of features inside each group.

    Args:
        features: [G g D] g >= 2 features of one view.
    Returns: [G] float32, minus the mean log distance to the nearest neighbour.
    Raises: ValueError if a group has a single member.
    Source: arXiv:1806.03198 eq. 3; arXiv:2304.07193 section 4.
    """
    if features.shape[1] < 2:
        raise errors.InputError(
            "KoLeo needs the nearest neighbour inside a group, but groups have "
            f"{features.shape[1]} image; use groups of 2 or more, or weight 0."
        )
    x = heads.normalize(features, 1e-8)
    dots = jnp.einsum("gid,gjd->gij", x, x, precision=EXACT)
    itself = jnp.eye(x.shape[1], dtype=bool)
    nearest = jnp.argmax(jnp.where(itself, -1.0, jax.lax.stop_gradient(dots)), axis=2)
    neighbor = jnp.take_along_axis(x, nearest[..., None], axis=1)
    distance = jnp.sqrt(jnp.sum((x - neighbor + 1e-8) ** 2, axis=-1))
    return -jnp.log(distance + 1e-8).mean(1)
