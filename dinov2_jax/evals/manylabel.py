"""Logistic regression where an image may have several labels: one class against the
rest, all classes at once.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax

from dinov2_jax import errors
from dinov2_jax.evals import lbfgs, logreg, retrieval, strengths

LEVELS = np.linspace(0, 1, 11)  # of recall, of the older average precision


def fit(
    x: np.ndarray,
    targets: np.ndarray,
    cs: Sequence[float],
    weights: np.ndarray | None = None,
    *,
    iterations: int = 1000,
    tolerance: float = 1e-12,
    dtype: str = "float64",
) -> strengths.Fit:
    """The classifiers that minimise C * sum of cross-entropies + |kernel|^2 / 2.

    Args:
        x: [n D] features.
        targets: [n K] 1 where an image has a label, 0 where it has not, -1 where that
            shall not count.
        cs: [c] strengths C > 0.
        weights: [n] of the rows, not all 0; None for 1.
        iterations, tolerance, dtype: as `logreg.fit`.
    Returns: a Fit in the order of `cs`; the loss is the sum over classes.
    Raises: ValueError if targets and rows do not fit, a C is not positive, or a feature
        is not finite.
    """
    _check(x, targets)
    cs = strengths.require_positive(cs)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    problem = lbfgs.weighed(_problem(x, targets, dtype), weights, targets >= 0)
    settings = {"iterations": iterations, "tolerance": tolerance}
    return strengths.path(problem, cs, **settings)


def _problem(x: np.ndarray, targets: np.ndarray, dtype: str) -> lbfgs.Problem:
    """Rows with 1 for the labels that each has."""
    truth = (targets == 1).astype(dtype if dtype in lbfgs.DTYPES else float)
    return lbfgs.problem(x, truth, targets.shape[1], cross_entropy, dtype)


def cross_entropy(
    logits: jax.Array, truth: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each class against the rest: losses, probabilities and targets, all [b K]."""
    losses = optax.losses.sigmoid_binary_cross_entropy(logits, truth)
    return losses, jax.nn.sigmoid(logits), truth


def scores(fitted: strengths.Fit, x: np.ndarray, number: int = 0) -> np.ndarray:
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
    cs: Sequence[float],
    *,
    eleven: bool = False,
    held_out: float = 0.1,
    seed: int = 0,
    dtype: str = "float64",
    partial: strengths.Partial | None = None,
    after: Callable[[strengths.Partial], None] = lambda _: None,
    iterations: int = 1000,
    tolerance: float = 1e-12,
) -> strengths.Sweep:
    """Chooses C by mean average precision on rows held out, then fits all rows.

    Args:
        x, targets, cs, iterations, tolerance, dtype: as `fit`.
        eleven: as `average_precisions`.
        held_out: share of the rows that choose.
        seed: of which rows these are.
        partial, after: of `strengths.chosen`, by which a stopped sweep resumes.
    Raises: ValueError as `fit`, or if the rows held out show no class.
    """
    _check(x, targets)
    weights, out = logreg.held_out_rows(len(x), held_out, seed)
    if not (targets[out] == 1).any():
        raise errors.InputError(
            f"{len(out)} rows held out show no class; hold out more."
        )

    def judge(fitted: strengths.Fit) -> float:
        each = average_precisions(scores(fitted, x[out]), targets[out], eleven)
        return float(np.nanmean(each))

    problem = _problem(x, targets, dtype)
    settings = {"iterations": iterations, "tolerance": tolerance}
    return strengths.chosen(
        problem, cs, weights, judge, partial, after, targets >= 0, **settings
    )


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
