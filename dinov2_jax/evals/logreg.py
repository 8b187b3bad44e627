"""Logistic regression with an L2 penalty, whose strength is chosen on rows held out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors
from dinov2_jax.evals import lbfgs

DTYPES = lbfgs.DTYPES


class Fit(NamedTuple):
    """Classifiers, one for each C."""

    kernel: np.ndarray  # [c D K]
    bias: np.ndarray  # [c K]
    loss: np.ndarray  # [c] the objective divided by C and by the sum of the weights
    iterations: np.ndarray  # [c] int32, as many as allowed where it went no further


class Sweep(NamedTuple):
    """The C that did best on the rows held out, and the classifier of all rows."""

    c: float
    accuracies: np.ndarray  # [c] share of held-out rows that each C got right
    fit: Fit  # of the chosen C alone


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
) -> Fit:
    """The classifiers that minimise C * sum of cross-entropies + |kernel|^2 / 2.

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
    cs = lbfgs.require_strengths(cs)
    problem = lbfgs.problem(x, _int32(labels), classes, cross_entropy, dtype)
    if weights is not None:
        problem = lbfgs.weighed(problem, np.asarray(weights, float))
    return stacked(lbfgs.path(problem, cs, iterations=iterations, tolerance=tolerance))


def cross_entropy(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one class a row: losses [b 1], probabilities and targets [b K]."""
    logp = jax.nn.log_softmax(logits)
    truth = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return -(logp * truth).sum(1, keepdims=True), jnp.exp(logp), truth


def stacked(classifiers: Sequence[lbfgs.Classifier]) -> Fit:
    """A Fit of some classifiers."""
    return Fit(*map(np.stack, zip(*classifiers)))


def guesses(fitted: Fit, x: np.ndarray, block: int = 8192) -> np.ndarray:
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
    partial: lbfgs.Partial | None = None,
    after: Callable[[lbfgs.Partial], None] = lambda _: None,
    iterations: int = 1000,
    tolerance: float = 1e-12,
) -> Sweep:
    """Chooses C on rows held out at random, then fits all rows with it.

    Args:
        x, labels, classes, cs, iterations, tolerance, dtype: as `fit`.
        held_out: share of the rows that choose.
        seed: of which rows these are.
        partial, after: of `lbfgs.sweep`, by which a stopped sweep resumes.
    Returns: of equally good values of C the smallest is chosen.
    Raises: ValueError as `fit`, or if no row or every row would be held out.
    """
    _check(x, labels, classes)
    weights, out = held_out_rows(len(x), held_out, seed)
    problem = lbfgs.problem(x, _int32(labels), classes, cross_entropy, dtype)

    def judge(classifier: lbfgs.Classifier) -> float:
        return float((guesses(stacked([classifier]), x[out])[0] == labels[out]).mean())

    settings = {"iterations": iterations, "tolerance": tolerance}
    return chosen(problem, cs, weights, judge, partial, after, **settings)


def chosen(
    problem: lbfgs.Problem,
    cs: Sequence[float],
    weights: np.ndarray,
    judge: Callable[[lbfgs.Classifier], float],
    partial: lbfgs.Partial | None,
    after: Callable[[lbfgs.Partial], None],
    counts: np.ndarray | None = None,
    **settings,
) -> Sweep:
    """The C whose classifier is judged best, and the one of all rows with it.

    Args:
        problem: all rows.
        cs: strengths C > 0.
        weights: [n], 0 for the rows held out.
        judge, partial, after: of `lbfgs.sweep`.
        counts: of `lbfgs.weighed`.
        settings: of `lbfgs.minimum`.
    """
    cs = np.sort(lbfgs.require_strengths(cs))
    part = lbfgs.weighed(problem, weights, counts)
    done = lbfgs.sweep(part, cs, judge, partial, after, **settings)
    best = float(cs[done.scores.argmax()])
    whole = lbfgs.weighed(problem, np.ones(len(weights)), counts)
    last = lbfgs.minimum(whole, best, done.best, **settings)
    return Sweep(best, done.scores, stacked([last]))


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


def _int32(labels: np.ndarray) -> np.ndarray:
    """Labels as the device takes them."""
    return np.asarray(labels, np.int32)


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
