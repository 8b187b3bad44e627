"""Linear classifiers with an L2 penalty, each fitted from that of the C before it.

Features lie on the device about their mean and along their principal axes. There, each
direction is scaled by the curvature that the objective has at the start, and the
intercept, which is not penalised, by its own: the minimum stays where it is, and L-BFGS
reaches it in a fraction of the steps.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from dinov2_jax import errors

DTYPES = ("float64", "float32")
CHANGE = {"float64": 64 * np.finfo(np.float64).eps, "float32": 1e-9}
"""Relative change of the loss that is none; in float32 only an equal loss is equal."""
MEMORY, SEARCH = (
    10,
    50,
)  # steps that L-BFGS keeps; evaluations of a line search, at most
LOGITS = 1 << 24  # computed at once: memory does not grow with rows times classes
FLAT = 1e-9  # smallest curvature: scales stay finite where every row is sure

CrossEntropy = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
"""(logits [b K], targets [b ...]) -> losses [b 1] or [b K], probabilities and targets
[b K]."""


class Classifier(NamedTuple):
    """That of one C."""

    kernel: np.ndarray  # [D K]
    bias: np.ndarray  # [K]
    loss: np.ndarray  # [] the objective divided by C and by the sum of the weights
    iterations: np.ndarray  # [] int32


class Problem(NamedTuple):
    """Rows on the device, in blocks whose last one is filled up, and their targets."""

    rows: jax.Array  # [m b r] about their mean, along their principal axes
    targets: jax.Array  # [m b ...]
    shares: jax.Array  # [m b 1] or [m b K] of each row in the loss
    total: float  # of the rows' weights
    mean: np.ndarray  # [D]
    axes: np.ndarray  # [D r]
    variances: np.ndarray  # [r]
    classes: int
    cross_entropy: CrossEntropy

    @property
    def dtype(self) -> str:
        """One of DTYPES."""
        return self.rows.dtype.name


class Partial(NamedTuple):
    """A sweep between two values of C: all that it needs to resume."""

    scores: np.ndarray  # [i] of the values of C so far
    last: Classifier
    best: Classifier


def problem(
    x: np.ndarray,
    targets: np.ndarray,
    classes: int,
    cross_entropy: CrossEntropy,
    dtype: str,
) -> Problem:
    """Rows as `minimum` takes them, each of weight 1.

    Args:
        x: [n D] features.
        targets: [n] or [n K], of the cross-entropy.
        classes: K.
        cross_entropy: of the logits.
        dtype: one of DTYPES, of the arithmetic on the device.
    Raises: ValueError if a feature is not finite, or for another dtype.
    """
    if dtype not in DTYPES:
        raise errors.InputError(f"{dtype=}; choose one of {', '.join(DTYPES)}.")
    number = -(-len(x) * classes // LOGITS)
    size = -(-len(x) // number)
    parts = [slice(i, i + size) for i in range(0, len(x), size)]
    mean, scatter = x.mean(0, dtype=np.float64), 0
    for part in parts:
        centred = x[part] - mean
        scatter = scatter + centred.T @ centred / len(x)
    if not np.isfinite(scatter).all():
        raise errors.InputError("Features hold numbers that are not finite.")
    variances, axes = np.linalg.eigh(scatter)
    real = variances > variances[-1] * len(variances) * np.finfo(np.float64).eps
    real[-1] = True  # all rows may be equal
    variances, axes = np.maximum(variances[real], 0), axes[:, real]
    rows = np.empty((len(x), len(variances)), dtype)
    for part in parts:
        rows[part] = (x[part] - mean) @ axes
    with precision(dtype):
        placed = [_blocks(array, size) for array in (rows, targets)]
    empty = Problem(*placed, None, 0, mean, axes, variances, classes, cross_entropy)
    return weighed(empty, np.ones(len(x)))


def weighed(
    problem: Problem, weights: np.ndarray, counts: np.ndarray | None = None
) -> Problem:
    """The problem with other weights of its rows.

    Args:
        problem: of `problem`.
        weights: [n], not all 0.
        counts: [n K] whether a row counts for a class; None for all.
    """
    total = float(weights.sum())
    shares = (weights / total)[:, None] * (1 if counts is None else counts)
    with precision(problem.dtype):
        placed = _blocks(shares.astype(problem.dtype), problem.rows.shape[1])
    return problem._replace(shares=placed, total=total)


def _blocks(array: np.ndarray, size: int) -> jax.Array:
    """[n ...] as [m size ...] on the device, zeros behind."""
    if len(array) % size:
        fill = [(0, -len(array) % size)] + [(0, 0)] * (array.ndim - 1)
        array = np.pad(array, fill)
    return jnp.asarray(array.reshape(-1, size, *array.shape[1:]))


def precision(dtype: str):
    """The context in which JAX computes in that dtype."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnames=("cross_entropy",))
def _evaluated(
    packed: jax.Array,
    scale: jax.Array,
    penalty: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    shares: jax.Array,
    cross_entropy: CrossEntropy,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Objective, gradient, the largest entry of that without scales, and curvature.

    The parameters [r+1 K] are the kernel and, in the last row, the bias; `scale` [r+1 1]
    is what they are multiplied by. The curvature is the sum of p (1 - p) of all shares.
    """
    inner = packed * scale
    kernel, bias = inner[:-1], inner[-1]
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def add(sums, part):
        x, target, share = part
        losses, p, truth = cross_entropy(product(x, kernel) + bias, target)
        wrong = share * (p - truth)
        gradient = jnp.concatenate([product(x.T, wrong), wrong.sum(0)[None]])
        new = (share * losses).sum(), gradient, (share * p * (1 - p)).sum()
        return jax.tree.map(jnp.add, sums, new), None

    nothing = jnp.zeros((), packed.dtype)
    begin = nothing, jnp.zeros_like(packed), nothing
    loss, gradient, curvature = jax.lax.scan(add, begin, (rows, targets, shares))[0]
    gradient = gradient.at[:-1].add(penalty * kernel)
    objective = loss + 0.5 * penalty * (kernel**2).sum()
    return objective, gradient * scale, jnp.abs(gradient).max(), curvature


def minimum(
    problem: Problem, c: float, start: Classifier, iterations: int, tolerance: float
) -> Classifier:
    """The classifier that minimises C * sum of cross-entropies + |kernel|^2 / 2.

    Args:
        problem: rows and targets.
        c: C > 0.
        start: parameters from which to search; its loss is not looked at.
        iterations: of L-BFGS, at most.
        tolerance: largest entry of the loss's gradient at which it stops, features about
            their mean along their principal axes.
    """
    penalty, dtype = 1 / (c * problem.total), problem.dtype
    kernel = problem.axes.T @ start.kernel
    bias = start.bias + problem.mean @ start.kernel
    packed = np.concatenate([kernel, bias[None]])
    largest = np.inf

    def evaluated(packed, scale):
        with precision(dtype):
            return jax.device_get(
                _evaluated(
                    packed.astype(dtype),
                    scale.astype(dtype),
                    np.asarray(penalty, dtype),
                    *problem[:3],
                    problem.cross_entropy,
                )
            )

    curvature = evaluated(packed, np.ones((len(packed), 1)))[-1] / problem.classes
    curvature = max(float(curvature), FLAT)
    inverse = np.append(problem.variances * curvature + penalty, curvature)
    scale = 1 / np.sqrt(inverse)[:, None]

    def objective(flat):
        nonlocal largest
        value, gradient, largest, _ = evaluated(flat.reshape(packed.shape), scale)
        return float(value), gradient.astype(np.float64).ravel()

    def stop(_):
        if largest <= tolerance:
            raise StopIteration

    found = scipy.optimize.minimize(
        objective,
        (packed / scale).ravel(),
        jac=True,
        method="L-BFGS-B",
        callback=stop,
        options={
            "maxiter": iterations,
            "maxfun": iterations * SEARCH,
            "maxls": SEARCH,
            "maxcor": MEMORY,
            "ftol": CHANGE[dtype],
            "gtol": 0,  # `stop` looks at the gradient without the scales
        },
    )
    packed = found.x.reshape(packed.shape) * scale
    kernel = problem.axes @ packed[:-1]
    bias = packed[-1] - problem.mean @ kernel
    return Classifier(
        kernel.astype(dtype),
        bias.astype(dtype),
        np.asarray(found.fun),
        np.int32(found.nit),
    )


def zeros(problem: Problem) -> Classifier:
    """Where the search for the smallest C starts."""
    width, classes = len(problem.mean), problem.classes
    kernel, bias = np.zeros((width, classes)), np.zeros(classes)
    return Classifier(kernel, bias, np.asarray(np.inf), np.int32(0))


def path(problem: Problem, cs: np.ndarray, **settings) -> list[Classifier]:
    """The classifiers of some C, in their order; each starts at the next smaller C's.

    Settings are those of `minimum`.
    """
    fits, start = [None] * len(cs), zeros(problem)
    for i in np.argsort(cs, kind="stable"):
        start = fits[i] = minimum(problem, float(cs[i]), start, **settings)
    return fits


def sweep(
    problem: Problem,
    cs: np.ndarray,
    judge: Callable[[Classifier], float],
    partial: Partial | None = None,
    after: Callable[[Partial], None] = lambda _: None,
    **settings,
) -> Partial:
    """What the values of C score, and the best classifier; of equals the smallest C's.

    Args:
        problem: without the rows that judge.
        cs: [c] C, rising.
        judge: the score of a classifier.
        partial: what `after` was given by a sweep that was stopped.
        after: called after each C.
        settings: of `minimum`.
    """
    begin = 0 if partial is None else len(partial.scores)
    for c in cs[begin:]:
        start = zeros(problem) if partial is None else partial.last
        last = minimum(problem, float(c), start, **settings)
        before = [] if partial is None else partial.scores
        score, best = judge(last), last
        if partial is not None and score <= max(before):
            best = partial.best
        partial = Partial(np.append(before, score), last, best)
        after(partial)
    return partial


def require_strengths(cs: Sequence[float]) -> np.ndarray:
    """[c] float64; raises ValueError unless each is positive."""
    cs = np.asarray(cs, np.float64)
    if cs.ndim != 1 or not len(cs) or not (cs > 0).all() or not np.isfinite(cs).all():
        raise errors.InputError(
            f"cs={cs.tolist()} must be one positive number or more."
        )
    return cs
