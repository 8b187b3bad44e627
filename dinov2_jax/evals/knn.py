"""Weighted k-nearest-neighbour classification of L2-normalised features."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import neighbors


def votes(
    dots: jax.Array,
    labels: jax.Array,
    classes: int,
    ks: Sequence[int],
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
    hits = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    return {k: jnp.einsum("nk,nkc->nc", weights[:, :k], hits[:, :k]) for k in ks}


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
        train: [m D] features, not yet normalised.
        train_labels: [m] int >= 0.
        val: [n D] features.
        val_labels: [n] int >= 0.
        ks: numbers of neighbours; those above m are cut to m.
        temp: see `votes`.
        block: validation rows at once.
        shards: see `neighbors.topk`.
    Returns: k -> accuracy in [0, 1].
    Source: arXiv:1805.01978 section 3.4; arXiv:2304.07193 section 7.1.
    """
    largest = min(max(ks), len(train))
    classes = int(max(train_labels.max(), val_labels.max())) + 1
    train, val = (unit_rows(jnp.asarray(x)) for x in (train, val))
    train_labels = jnp.asarray(train_labels)
    right = dict.fromkeys(ks, 0)
    for start in range(0, len(val), block):
        rows = val[start : start + block]
        wanted = val_labels[start : start + block]
        dots, ids = neighbors.topk(rows, train, largest, shards=shards)
        scores = votes(dots, train_labels[ids], classes, ks, temp)
        for k, score in scores.items():
            right[k] += int((np.asarray(score).argmax(1) == wanted).sum())
    return {k: n / len(val) for k, n in right.items()}


def unit_rows(x: jax.Array) -> jax.Array:
    """Rows divided by their L2 norm, float32; a zero row stays zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
