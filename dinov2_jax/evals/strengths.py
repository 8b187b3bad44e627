"""Classifiers of many strengths C of the penalty, and the choice of one of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax import errors
from dinov2_jax.evals import lbfgs


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


class Partial(NamedTuple):
    """A sweep between two values of C: all that it needs to resume."""

    scores: np.ndarray  # [i] of the values of C so far
    last: lbfgs.Classifier
    best: lbfgs.Classifier


def path(problem: lbfgs.Problem, cs: np.ndarray, **settings) -> Fit:
    """The classifiers of some C, in their order; each starts at the next smaller C's.

    Settings are those of `lbfgs.minimum`.
    """
    fits, start = [None] * len(cs), lbfgs.zeros(problem)
    for i in np.argsort(cs, kind="stable"):
        start = fits[i] = lbfgs.minimum(problem, float(cs[i]), start, **settings)
    return stacked(fits)


def stacked(classifiers: Sequence[lbfgs.Classifier]) -> Fit:
    """A Fit of some classifiers."""
    return Fit(*map(np.stack, zip(*classifiers)))


def chosen(
    problem: lbfgs.Problem,
    cs: Sequence[float],
    weights: np.ndarray,
    judge: Callable[[Fit], float],
    partial: Partial | None = None,
    after: Callable[[Partial], None] = lambda _: None,
    counts: np.ndarray | None = None,
    **settings,
) -> Sweep:
    """The C whose classifier is judged best, and the one of all rows with it.

    Args:
        problem: all rows.
        cs: [c] strengths C > 0.
        weights: [n], 0 for the rows held out.
        judge: the score of a Fit of one C.
        partial: what `after` was given last by a sweep that was stopped.
        after: called after each C.
        counts: of `lbfgs.weighed`.
        settings: of `lbfgs.minimum`.
    Returns: of equally good values of C the smallest is chosen.
    """
    cs = np.sort(require_positive(cs))
    part = lbfgs.weighed(problem, weights, counts)
    if partial is None:
        partial = Partial(np.zeros(0), lbfgs.zeros(problem), lbfgs.zeros(problem))
    for c in cs[len(partial.scores) :]:
        last = lbfgs.minimum(part, float(c), partial.last, **settings)
        score = judge(stacked([last]))
        better = score > max(partial.scores, default=-np.inf)
        scores = np.append(partial.scores, score)
        partial = Partial(scores, last, last if better else partial.best)
        after(partial)
    best = float(cs[partial.scores.argmax()])
    whole = lbfgs.weighed(problem, np.ones(len(weights)), counts)
    classifier = lbfgs.minimum(whole, best, partial.best, **settings)
    return Sweep(best, partial.scores, stacked([classifier]))


def require_positive(cs: Sequence[float]) -> np.ndarray:
    """[c] float64; raises ValueError unless there is one C and each is positive."""
    cs = np.asarray(cs, np.float64)
    if cs.ndim != 1 or not len(cs) or not (cs > 0).all() or not np.isfinite(cs).all():
        raise errors.InputError(
            f"cs={cs.tolist()} must be one positive number or more."
        )
    return cs
