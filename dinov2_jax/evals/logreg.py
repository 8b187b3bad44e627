"""Logistic regression with an L2 penalty, whose strength is chosen on rows held out."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors
from dinov2_jax.evals import lbfgs, strengths

DTYPES = lbfgs.DTYPES


def fit(
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    cs: Sequence[float],
    weights: np.ndarray | None = None,
    *,
    iterations: int = 1000,
    tolerance: float = 1e-12,
    dtype: str = "float64",
) -> strengths.Fit:
    """The classifiers that minimise C * sum of cross-entropies + |kernel|^2 / 2.

    Of two classes, the penalty is that of the difference of their kernels.

    Args:
        x: [n D] features.
        labels: [n] int, 0..classes-1.
        classes: K.
        cs: [c] strengths C > 0, the larger the weaker the penalty; each but the smallest
            is fitted from the next smaller one's classifier.
        weights: [n] of the rows' cross-entropies, not all 0; None for 1.
        iterations: of L-BFGS, at most.
        tolerance: largest entry of the loss's gradient at which it stops.
        dtype: float64 or float32, of the arithmetic on the device.
    Returns: a Fit in the order of `cs`.
    Raises: ValueError if labels and rows do not fit, a C is not positive, or a feature
        is not finite.
    Source: arXiv:2304.07193 section 7.1; scikit-learn's LogisticRegression minimises
        the same.
    """
    _check(x, labels, classes)
    cs = strengths.require_positive(cs)
    problem = _problem(x, labels, classes, dtype)
    if weights is not None:
        problem = lbfgs.weighed(problem, np.asarray(weights, float))
    return strengths.path(problem, cs, iterations=iterations, tolerance=tolerance)


def cross_entropy(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one class a row: losses [b 1], probabilities and targets [b K]."""
    logp = jax.nn.log_softmax(logits)
    truth = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return -(logp * truth).sum(1, keepdims=True), jnp.exp(logp), truth


def guesses(fitted: strengths.Fit, x: np.ndarray, block: int = 8192) -> np.ndarray:
    """Class of each row by each classifier, [c n] int64."""
    out = np.empty((len(fitted.bias), len(x)), np.int64)
    for start in range(0, len(x), block):
        rows = np.asarray(x[start : start + block], fitted.kernel.dtype)
        for number, (kernel, bias) in enumerate(zip(fitted.kernel, fitted.bias)):
            out[number, start : start + block] = (rows @ kernel + bias).argmax(1)
    return out


def sweep(
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    cs: Sequence[float],
    *,
    held_out: float = 0.1,
    seed: int = 0,
    dtype: str = "float64",
    partial: strengths.Partial | None = None,
    after: Callable[[strengths.Partial], None] = lambda _: None,
    iterations: int = 1000,
    tolerance: float = 1e-12,
) -> strengths.Sweep:
    """Chooses C on rows held out at random, then fits all rows with it.

    Args:
        x, labels, classes, cs, iterations, tolerance, dtype: as `fit`.
        held_out: share of the rows that choose.
        seed: of which rows these are.
        partial, after: of `strengths.chosen`, by which a stopped sweep resumes.
    Returns: of equally good values of C the smallest is chosen.
    Raises: ValueError as `fit`, or if no row or every row would be held out.
    """
    _check(x, labels, classes)
    weights, out = held_out_rows(len(x), held_out, seed)
    problem = _problem(x, labels, classes, dtype)

    def judge(fitted: strengths.Fit) -> float:
        return float((guesses(fitted, x[out])[0] == labels[out]).mean())

    settings = {"iterations": iterations, "tolerance": tolerance}
    return strengths.chosen(problem, cs, weights, judge, partial, after, **settings)


def held_out_rows(
    count: int, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [n] of all rows, 0 of those held out, and the numbers of these.

    Raises: ValueError if no row or every row would be held out.
    """
    number = round(held_out * count)
    if not 0 < number < count:
        raise errors.InputError(
            f"{held_out=} of {count} rows holds out {number}; choose a share that "
            "leaves rows on both sides."
        )
    order = np.random.default_rng(seed).permutation(count)
    out, weights = np.sort(order[:number]), np.ones(count)
    weights[out] = 0  # and no second copy of the others
    return weights, out


def _problem(
    x: np.ndarray, labels: np.ndarray, classes: int, dtype: str
) -> lbfgs.Problem:
    """Rows with one class each."""
    labels = np.asarray(labels, np.int32)
    # |w|^2 / 2 of the difference w of two kernels that are w / 2 and -w / 2.
    factor = 2.0 if classes == 2 else 1.0
    return lbfgs.problem(x, labels, classes, cross_entropy, dtype, factor)


def _check(x: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Raises ValueError unless each row has a class among `classes`."""
    if not len(x) or len(x) != len(labels):
        raise errors.InputError(
            f"{len(x)} rows with {len(labels)} labels; logistic regression needs one "
            "label for each row, and a row."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise errors.InputError(
            f"Labels run from {labels.min()} to {labels.max()}; they must lie in 0 to "
            f"{classes - 1}, the {classes} classes."
        )
