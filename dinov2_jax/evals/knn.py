"""Weighted k-nearest-neighbour classification of L2-normalised features."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, neighbors


@functools.partial(jax.jit, static_argnames=("classes", "ks"))
def votes(
    dots: jax.Array,
    labels: jax.Array,
    classes: int,
    ks: tuple[int, ...],
    temp: float = 0.07,
) -> dict[int, jax.Array]:
    """Class scores from sorted neighbours.

    Args:
        dots: [n k] similarities, falling; k is the largest of `ks`.
        labels: [n k] classes of those neighbours.
        classes: number of classes C.
        ks: numbers of neighbours to score with.
        temp: of the softmax over all k neighbours.
    Returns: k -> [n C] float32; a smaller k sums its first weights without
        normalising them again, as the reference does.
    """
    weights = jax.nn.softmax(dots / temp, axis=1)
    none, rows = jnp.zeros((len(dots), classes)), jnp.arange(len(dots))[:, None]
    return {k: none.at[rows, labels[:, :k]].add(weights[:, :k]) for k in ks}


def top1(
    train: jax.Array,
    train_labels: np.ndarray,
    val: jax.Array,
    val_labels: np.ndarray,
    ks: Sequence[int] = (10, 20, 100, 200),
    temp: float = 0.07,
    block: int = 1024,
    shards: int = 1,
) -> Mapping[int, float]:
    """Share of validation rows whose class the neighbours guess.

    Args:
        val_labels: [n] int >= 0.
        others: see `voted`.
    Returns: k -> accuracy in [0, 1].
    Raises: ValueError as `voted`, or if a validation row has no label.
    """
    _check("train", train, train_labels)
    _check("val", val, val_labels)
    classes = voted(train, train_labels, val, ks, temp, block, shards)
    return {k: float((guess == val_labels).mean()) for k, (guess, _) in classes.items()}


def voted(
    train: jax.Array,
    train_labels: np.ndarray,
    val: jax.Array,
    ks: Sequence[int] = (10, 20, 100, 200),
    temp: float = 0.07,
    block: int = 1024,
    shards: int = 1,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The class that gets most of the neighbours' votes, and its share of them.

    Args:
        train: [m D] features, not yet normalised.
        train_labels: [m] int >= 0.
        val: [n D] features.
        ks: numbers of neighbours; those above m are cut to m.
        temp: see `votes`.
        block: validation rows at once.
        shards: devices that each search a part of the training rows.
    Returns: k -> ([n] int64 class, [n] float32 weight of its votes, of the softmax over
        the largest k).
    Raises: ValueError if the training set is empty, a label is missing, or no k is
        positive.
    Source: arXiv:1805.01978 section 3.4; arXiv:2304.07193 section 7.1.
    """
    _check("train", train, train_labels)
    if not ks or min(ks) < 1:
        raise errors.InputError(f"{ks=}; k-NN needs one k or more, all at least 1.")
    largest = min(max(ks), len(train))
    classes = int(train_labels.max()) + 1
    val = unit_rows(jnp.asarray(val))
    keys = neighbors.spread(unit_rows(jnp.asarray(train)), shards)
    found = {
        k: (np.empty(len(val), np.int64), np.empty(len(val), np.float32)) for k in ks
    }
    for start in range(0, len(val), block):
        rows = np.asarray(val[start : start + block])
        dots, ids = neighbors.topk(
            rows, keys, largest, shards=shards, number=len(train)
        )
        nearest = train_labels[np.asarray(ids)]
        scores = votes(dots, nearest, classes, tuple(ks), temp)
        for k, score in scores.items():
            score, (guess, weight) = np.asarray(score), found[k]
            guess[start : start + block] = score.argmax(1)
            weight[start : start + block] = score.max(1)
    return found


def few(labels: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of `number` rows of each class, drawn at random, rising.

    Raises: ValueError if a class has fewer.
    """
    require_few(labels, number)
    drawn = [
        rng.choice(np.flatnonzero(labels == c), number, replace=False)
        for c in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


def require_few(labels: np.ndarray, number: int) -> None:
    """Raises ValueError if a class has fewer rows."""
    least = np.unique(labels, return_counts=True)[1].min()
    if least < number:
        raise errors.InputError(
            f"{number} images a class are asked for; the smallest class has {least}. "
            f"Ask for 1 to {least}."
        )


def _check(name: str, features: jax.Array, labels: np.ndarray) -> None:
    """Raises ValueError unless there are rows, each with a label."""
    if not len(features) or len(features) != len(labels):
        raise errors.InputError(
            f"{name}: {len(features)} features with {len(labels)} labels; k-NN needs "
            "one label for each row, and a row."
        )
    missing = int((labels < 0).sum())
    if missing:
        raise errors.InputError(
            f"{name}: {missing} of {len(labels)} images have no label, which k-NN "
            "needs; put them into class folders, or take them out."
        )


def unit_rows(x: jax.Array) -> jax.Array:
    """Rows divided by their L2 norm, float32; a zero row stays zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
