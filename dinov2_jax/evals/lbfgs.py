"""Linear classifiers with an L2 penalty, each fitted from that of the C before it.

Features lie on the device about their mean and along their principal axes. There, each
direction is scaled by the curvature that the objective has at the start, and the
intercept, which is not penalised, by its own: the minimum stays where it is, and L-BFGS
reaches it in a fraction of the steps.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov2_jax import errors

DTYPES = ("float64", "float32")
CHANGE = {"float64": 64 * np.finfo(np.float64).eps, "float32": 1e-9}
"""Relative change of the loss that is none; in float32 only an equal loss is equal."""
PATIENCE = 5  # iterations in a row without a visible change of the loss: it is done
MEMORY, HALVINGS, ARMIJO = 10, 30, 1e-4  # of L-BFGS and of its line search
ENTRIES = 1 << 24  # of a block of features or logits: no copy of all rows is made
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
    mean: jax.Array  # [D]
    axes: jax.Array  # [D r]
    variances: jax.Array  # [r]
    classes: int
    cross_entropy: CrossEntropy
    factor: float  # of the penalty

    @property
    def dtype(self) -> str:
        """One of DTYPES."""
        return self.rows.dtype.name


def problem(
    x: np.ndarray,
    targets: np.ndarray,
    classes: int,
    cross_entropy: CrossEntropy,
    dtype: str,
    factor: float = 1.0,
) -> Problem:
    """Rows as `minimum` takes them, each of weight 1.

    Args:
        x: [n D] features.
        targets: [n] or [n K], of the cross-entropy.
        classes: K.
        cross_entropy: of the logits.
        dtype: one of DTYPES, of the arithmetic on the device.
        factor: of the penalty.
    Raises: ValueError if a feature is not finite, or for another dtype.
    """
    if dtype not in DTYPES:
        raise errors.InputError(f"{dtype=}; choose one of {', '.join(DTYPES)}.")
    number = -(-len(x) * max(classes, x.shape[1]) // ENTRIES)
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
        blocks = [_blocks(array, size) for array in (rows, targets)]
        basis = [jnp.asarray(array, dtype) for array in (mean, axes, variances)]
    empty = Problem(*blocks, None, 0, *basis, classes, cross_entropy, factor)
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


def minimum(
    problem: Problem, c: float, start: Classifier, iterations: int, tolerance: float
) -> Classifier:
    """The classifier that minimises C * sum of cross-entropies + penalty.

    The penalty is |kernel|^2 / 2 times the problem's factor.

    Args:
        problem: rows and targets.
        c: C > 0.
        start: parameters from which to search; its loss is not looked at.
        iterations: of L-BFGS, at most.
        tolerance: largest entry of the loss's gradient at which it stops, features about
            their mean along their principal axes.
    """
    dtype = problem.dtype
    penalty, tolerance = np.asarray(
        [problem.factor / (c * problem.total), tolerance], dtype
    )
    start = [array.astype(dtype) for array in start[:2]]
    with precision(dtype):
        found = _minimum(
            *start,
            penalty,
            tolerance,
            CHANGE[dtype],
            *problem[:3],
            *problem[4:7],
            iterations,
            problem.cross_entropy,
        )
        return Classifier(*jax.device_get(found))


@functools.partial(jax.jit, static_argnames=("iterations", "cross_entropy"))
def _minimum(
    kernel: jax.Array,
    bias: jax.Array,
    penalty: jax.Array,
    tolerance: jax.Array,
    change: float,
    rows: jax.Array,
    targets: jax.Array,
    shares: jax.Array,
    mean: jax.Array,
    axes: jax.Array,
    variances: jax.Array,
    iterations: int,
    cross_entropy: CrossEntropy,
) -> Classifier:
    """`minimum`, compiled once for all C."""

    def evaluated(packed):
        return _evaluated(packed, penalty, rows, targets, shares, cross_entropy)

    def scaled(packed):
        objective, gradient, _ = evaluated(packed * scale)
        return objective, gradient * scale, jnp.abs(gradient).max()

    packed = jnp.concatenate([_product(axes.T, kernel), (bias + mean @ kernel)[None]])
    curvature = jnp.maximum(evaluated(packed)[2] / len(bias), FLAT)
    scale = jnp.append(variances * curvature + penalty, curvature)[:, None] ** -0.5
    packed, objective, count = _descended(
        scaled, packed / scale, iterations, tolerance, change
    )
    packed = packed * scale
    kernel = _product(axes, packed[:-1])
    return Classifier(kernel, packed[-1] - mean @ kernel, objective, count)


def _descended(
    evaluated: Callable, packed: jax.Array, iterations: int, tolerance, change: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(parameters, objective, iterations) by L-BFGS with steps that are halved.

    Args:
        evaluated: parameters -> objective, gradient, what the tolerance is held against.
        packed: parameters at the start.
        iterations, tolerance: of `minimum`.
        change: of the objective that is none.
    """
    optimiser = optax.scale_by_lbfgs(memory_size=MEMORY)
    noise = 4 * jnp.finfo(packed.dtype).eps  # the objective's own rounding

    def step(carry):
        packed, state, (before, gradient, _), still, count = carry
        direction, state = optimiser.update(gradient, state, packed)
        slope = (direction * gradient).sum()
        slack = noise * jnp.maximum(jnp.abs(before), 1)

        # As the objective is convex, a step that lowers it enough is all L-BFGS needs.
        def too_long(trial):
            rate, _, (objective, *_), halvings = trial
            bound = before - ARMIJO * rate * slope + slack
            return ~(objective <= bound) & (halvings < HALVINGS)

        def halved(trial):
            rate = trial[0] / 2
            moved = packed - rate * direction
            return rate, moved, evaluated(moved), trial[3] + 1

        whole = packed - direction
        trial = jnp.ones_like(before), whole, evaluated(whole), jnp.int32(0)
        _, packed, after, _ = jax.lax.while_loop(too_long, halved, trial)
        same = before - after[0] <= change * jnp.maximum(jnp.abs(after[0]), 1)
        return packed, state, after, jnp.where(same, still + 1, 0), count + 1

    def goes_on(carry):
        _, _, (_, _, largest), still, count = carry
        return (count < iterations) & (largest > tolerance) & (still < PATIENCE)

    zero = jnp.int32(0)
    carry = packed, optimiser.init(packed), evaluated(packed), zero, zero
    packed, _, (objective, *_), _, count = jax.lax.while_loop(goes_on, step, carry)
    return packed, objective, count


def _evaluated(
    packed: jax.Array,
    penalty: jax.Array,
    rows: jax.Array,
    targets: jax.Array,
    shares: jax.Array,
    cross_entropy: CrossEntropy,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Objective, gradient, and curvature, which is the sum of p (1 - p) of all shares.

    Parameters and gradient [r+1 K] are those of the kernel and, in the last row, the
    bias. The gradient is written out: it needs no logits but those of one block.
    """
    kernel, bias = packed[:-1], packed[-1]

    def add(sums, part):
        x, target, share = part
        losses, p, truth = cross_entropy(_product(x, kernel) + bias, target)
        wrong = share * (p - truth)
        gradient = jnp.concatenate([_product(x.T, wrong), wrong.sum(0)[None]])
        new = (share * losses).sum(), gradient, (share * p * (1 - p)).sum()
        return jax.tree.map(jnp.add, sums, new), None

    nothing = jnp.zeros((), packed.dtype)
    begin = nothing, jnp.zeros_like(packed), nothing
    loss, gradient, curvature = jax.lax.scan(add, begin, (rows, targets, shares))[0]
    gradient = gradient.at[:-1].add(penalty * kernel)
    return loss + 0.5 * penalty * (kernel**2).sum(), gradient, curvature


_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def zeros(problem: Problem) -> Classifier:
    """Where the search for the smallest C starts."""
    width, classes = len(problem.mean), problem.classes
    kernel, bias = np.zeros((width, classes)), np.zeros(classes)
    return Classifier(kernel, bias, np.asarray(np.inf), np.int32(0))
