"""Logistic regression where an image may have several labels: one class against the
rest, each class by itself, many strengths of the penalty at once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov2_jax import errors
from dinov2_jax.evals import logreg, retrieval

LEVELS = np.linspace(0, 1, 11)  # of recall, of the older average precision


def fit(
    x: np.ndarray,
    targets: np.ndarray,
    cs: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    iterations: int = 1000,
    tolerance: float = 1e-12,
    dtype: str = "float64",
    block: int = 15,
) -> logreg.Fit:
    """The classifiers that minimise C * sum of cross-entropies + |kernel|^2 / 2.

    Args:
        x: [n D] features.
        targets: [n K] 1 where an image has a label, 0 where it has not, -1 where that
            shall not count.
        cs: [c] strengths C > 0.
        weights: [n] of the rows, not all 0; None for 1.
        iterations, tolerance, dtype, block: as `logreg.fit`.
    Returns: a Fit in the order of `cs`; the loss is the sum over classes.
    Raises: ValueError if targets and rows do not fit, or a C is not positive.
    """
    _check(x, targets)
    cs = np.asarray(cs, np.float64)
    if cs.ndim != 1 or not len(cs) or not (cs > 0).all() or not np.isfinite(cs).all():
        raise errors.InputError(
            f"cs={cs.tolist()} must be one positive number or more."
        )
    if dtype not in logreg.DTYPES:
        raise errors.InputError(f"{dtype=}; choose one of {', '.join(logreg.DTYPES)}.")
    block = min(block, len(cs))
    padded = np.pad(cs, (0, -len(cs) % block), mode="edge").reshape(-1, block)
    with logreg.precision(dtype):
        rows, wanted = jnp.asarray(x, dtype), jnp.asarray(targets == 1, dtype)
        counts = np.ones(len(x)) if weights is None else np.asarray(weights, float)
        total = counts.sum()
        shares = jnp.asarray(counts[:, None] / total * (targets >= 0), dtype)
        parts = [
            jax.device_get(
                _fit_block(
                    rows,
                    wanted,
                    shares,
                    jnp.asarray(1 / (c * total), dtype),
                    iterations,
                    tolerance,
                    logreg.CHANGE[dtype],
                )
            )
            for c in padded
        ]
    return logreg.Fit(*(np.concatenate(column)[: len(cs)] for column in zip(*parts)))


@functools.partial(jax.jit, static_argnames=("iterations",))
def _fit_block(
    x: jax.Array,
    wanted: jax.Array,
    shares: jax.Array,
    penalties: jax.Array,
    iterations: int,
    tolerance: float,
    change: float,
) -> logreg.Fit:
    """A Fit for each penalty [c]; `wanted` and `shares` are [n K]."""

    def one(penalty):
        def loss(p):
            logits = jnp.matmul(x, p["kernel"], precision=jax.lax.Precision.HIGHEST)
            each = optax.losses.sigmoid_binary_cross_entropy(logits + p["bias"], wanted)
            return (shares * each).sum() + 0.5 * penalty * jnp.sum(p["kernel"] ** 2)

        start = logreg.zeros(x, wanted.shape[1])
        return logreg.minimum(loss, start, iterations, tolerance, change)

    found, count, value = jax.vmap(one)(penalties)
    return logreg.Fit(found["kernel"], found["bias"], value, count)


def scores(fitted: logreg.Fit, x: np.ndarray, number: int = 0) -> np.ndarray:
    """[n K] logits of one of the classifiers."""
    rows = np.asarray(x, fitted.kernel.dtype)
    return rows @ fitted.kernel[number] + fitted.bias[number]


def average_precisions(
    found: np.ndarray, targets: np.ndarray, eleven: bool = False
) -> np.ndarray:
    """Average precision of each class, NaN of one that no image has.

    Args:
        found: [n K] scores.
        targets: [n K] as `fit`; images of -1 are taken out of their class's list.
        eleven: the mean of the best precision at eleven levels of recall, as VOC
            counted until 2009; else the mean of the precision at each image found.
    Returns: [K].
    """
    out = np.full(targets.shape[1], np.nan)
    for k in range(targets.shape[1]):
        counts = targets[:, k] >= 0
        order = np.argsort(-found[counts, k], kind="stable")
        relevant = targets[counts, k][order] == 1
        if not relevant.any():
            continue
        if not eleven:
            out[k] = retrieval.average_precision(relevant)
            continue
        hits = np.cumsum(relevant)
        precision = hits / np.arange(1, len(hits) + 1)
        recall = hits / hits[-1]
        # As VOC's own code, the best precision at this recall or a larger one.
        out[k] = np.mean([precision[recall >= level].max() for level in LEVELS])
    return out


def sweep(
    x: np.ndarray,
    targets: np.ndarray,
    cs: np.ndarray,
    *,
    eleven: bool = False,
    held_out: float = 0.1,
    seed: int = 0,
    **settings,
) -> logreg.Sweep:
    """Chooses C by mean average precision on rows held out, then fits all rows.

    Args:
        x, targets, cs: as `fit`.
        eleven: as `average_precisions`.
        held_out: share of the rows that choose.
        seed: of which rows these are.
        settings: of `fit`.
    Raises: ValueError as `fit`, or if the rows held out show no class.
    """
    _check(x, targets)
    weights, out = logreg.held_out_rows(len(x), held_out, seed)
    cs = np.sort(np.asarray(cs, np.float64))
    tried = fit(x, targets, cs, weights, **settings)
    means = np.zeros(len(cs))
    for i in range(len(cs)):
        each = average_precisions(scores(tried, x[out], i), targets[out], eleven)
        if np.isnan(each).all():
            raise errors.InputError(
                f"{len(out)} rows held out show no class; hold out more."
            )
        means[i] = np.nanmean(each)
    best = float(cs[means.argmax()])
    return logreg.Sweep(best, means, fit(x, targets, [best], **settings))


def _check(x: np.ndarray, targets: np.ndarray) -> None:
    """Raises ValueError unless each row has a value for every class."""
    if not len(x) or targets.ndim != 2 or len(x) != len(targets):
        raise errors.InputError(
            f"{len(x)} rows with targets {targets.shape}; each row needs a value a class."
        )
    if not np.isin(targets, (-1, 0, 1)).all():
        raise errors.InputError(
            "Targets are 1 (has it), 0 (has it not) or -1 (does not count)."
        )
