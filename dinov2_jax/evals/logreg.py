"""Logistic regression with an L2 penalty, many strengths of it at once."""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov2_jax import errors

DTYPES = ("float64", "float32")
PATIENCE = 5  # iterations in a row without a visible change of the loss: it is done
CHANGE = {"float64": 64 * np.finfo(np.float64).eps, "float32": 1e-9}
"""Relative change of the loss that is none; in float32 only an equal loss is equal."""


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
    cs: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    iterations: int = 1000,
    tolerance: float = 1e-12,
    dtype: str = "float64",
    block: int = 15,
) -> Fit:
    """The classifiers that minimise C * sum of cross-entropies + |kernel|^2 / 2.

    Args:
        x: [n D] features.
        labels: [n] int, 0..classes-1.
        classes: K.
        cs: [c] strengths C > 0, the larger the weaker the penalty.
        weights: [n] of the rows' cross-entropies, not all 0; None for 1.
        iterations: of L-BFGS, at most.
        tolerance: largest entry of the loss's gradient at which it stops.
        dtype: float64 or float32, of all arithmetic.
        block: values of C at once; memory grows with it.
    Returns: a Fit in the order of `cs`.
    Raises: ValueError if labels and rows do not fit, or a C is not positive.
    Source: arXiv:2304.07193 section 7.1; scikit-learn's LogisticRegression minimises
        the same.
    """
    _check(x, labels, classes)
    cs = np.asarray(cs, np.float64)
    if cs.ndim != 1 or not len(cs) or not (cs > 0).all() or not np.isfinite(cs).all():
        raise errors.InputError(
            f"cs={cs.tolist()} must be one positive number or more."
        )
    if dtype not in DTYPES:
        raise errors.InputError(f"{dtype=}; choose one of {', '.join(DTYPES)}.")
    block = min(block, len(cs))
    padded = np.pad(cs, (0, -len(cs) % block), mode="edge").reshape(-1, block)
    with precision(dtype):
        rows, targets = jnp.asarray(x, dtype), jnp.asarray(labels, jnp.int32)
        counts = np.ones(len(x)) if weights is None else np.asarray(weights, float)
        total = counts.sum()
        shares = jnp.asarray(counts / total, dtype)
        parts = [
            jax.device_get(
                _fit_block(
                    rows,
                    targets,
                    shares,
                    jnp.asarray(1 / (c * total), dtype),
                    classes,
                    iterations,
                    tolerance,
                    CHANGE[dtype],
                )
            )
            for c in padded
        ]
    return Fit(*(np.concatenate(column)[: len(cs)] for column in zip(*parts)))


@functools.partial(jax.jit, static_argnames=("classes", "iterations"))
def _fit_block(
    x: jax.Array,
    labels: jax.Array,
    shares: jax.Array,
    penalties: jax.Array,
    classes: int,
    iterations: int,
    tolerance: float,
    change: float,
) -> Fit:
    """A Fit for each penalty [c] of the mean cross-entropy; `shares` [n] sum to 1."""

    def one(penalty):
        def loss(p):
            logits = jnp.matmul(x, p["kernel"], precision=jax.lax.Precision.HIGHEST)
            each = optax.losses.softmax_cross_entropy_with_integer_labels(
                logits + p["bias"], labels
            )
            return shares @ each + 0.5 * penalty * jnp.sum(p["kernel"] ** 2)

        return minimum(loss, zeros(x, classes), iterations, tolerance, change)

    found, count, value = jax.vmap(one)(penalties)
    return Fit(found["kernel"], found["bias"], value, count)


def zeros(x: jax.Array, classes: int) -> dict[str, jax.Array]:
    """Zeros."""
    kernel = jnp.zeros((x.shape[1], classes), x.dtype)
    return {"kernel": kernel, "bias": jnp.zeros(classes, x.dtype)}


def minimum(loss, start, iterations: int, tolerance: float, change: float):
    """(parameters, iterations, loss) by L-BFGS from a start."""
    optimiser = optax.lbfgs(memory_size=10)
    both = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, before, still, count = carry
        value, grad = both(params, state=state)
        updates, state = optimiser.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        same = jnp.abs(before - value) <= change * jnp.maximum(jnp.abs(value), 1)
        still = jnp.where(same, still + 1, 0)
        return optax.apply_updates(params, updates), state, value, still, count + 1

    def goes_on(carry):
        _, state, _, still, count = carry
        grad = optax.tree.get(state, "grad")
        largest = jnp.stack([jnp.abs(g).max() for g in jax.tree.leaves(grad)]).max()
        done = (count > 0) & ((largest <= tolerance) | (still >= PATIENCE))
        return (count < iterations) & ~done

    zero = jnp.int32(0)
    first = jnp.asarray(jnp.inf, start["bias"].dtype)
    carry = start, optimiser.init(start), first, zero, zero
    params, _, _, _, count = jax.lax.while_loop(goes_on, step, carry)
    return params, count, loss(params)


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
    cs: np.ndarray,
    *,
    held_out: float = 0.1,
    seed: int = 0,
    **settings,
) -> Sweep:
    """Chooses C on rows held out at random, then fits all rows with it.

    Args:
        x, labels, classes, cs: as `fit`.
        held_out: share of the rows that choose.
        seed: of which rows these are.
        settings: of `fit`.
    Returns: of equally good values of C the smallest is chosen.
    Raises: ValueError as `fit`, or if no row or every row would be held out.
    """
    _check(x, labels, classes)
    weights, out = held_out_rows(len(x), held_out, seed)
    cs = np.sort(np.asarray(cs, np.float64))
    tried = fit(x, labels, classes, cs, weights, **settings)
    accuracies = (guesses(tried, x[out]) == labels[out]).mean(1)
    best = float(cs[accuracies.argmax()])
    return Sweep(best, accuracies, fit(x, labels, classes, [best], **settings))


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


def precision(dtype: str):
    """The context in which JAX computes in that dtype."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


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
