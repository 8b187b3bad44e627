"""Semantic segmentation: loss of a head, its predictions by windows, and the scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors

CHUNK = 128  # rows of an image that are enlarged at once


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of pixels.

    Args:
        logits: [B H W K].
        labels: [B H W] int, 0..K-1, or negative where ignored.
    Returns: float32 scalar: the sum over labelled pixels by the number of all pixels,
        ignored ones too, so that a crop that is half padding weighs half.
    Raises: ValueError if the sizes differ.
    Source: mmsegmentation's loss as the reference sets it (`avg_non_ignore` off).
    """
    if logits.shape[:-1] != labels.shape:
        raise errors.InputError(
            f"{logits.shape=} and {labels.shape=} differ in B, H or W."
        )
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(logp, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    return -jnp.where(labels >= 0, own, 0.0).mean()


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was taken for each.

    Args:
        labels: [...] int, 0..classes-1, or negative where ignored.
        predicted: [...] int, 0..classes-1.
        classes: K.
    Returns: [K K] int64, rows the truth, columns the prediction.
    Raises: ValueError if shapes differ or a value is out of range.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape:
        raise errors.InputError(f"{labels.shape=} and {predicted.shape=} differ.")
    counted = labels >= 0
    truth, found = labels[counted].astype(np.int64), predicted[counted]
    for name, values in (("labels", truth), ("predictions", found)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise errors.InputError(
                f"{name} run from {values.min()} to {values.max()}; with {classes} "
                f"classes they must lie in 0..{classes - 1}."
            )
    pairs = np.bincount(truth * classes + found, minlength=classes**2)
    return pairs.reshape(classes, classes)


class Scores(NamedTuple):
    """Scores of a confusion matrix, in 0..1."""

    miou: float  # mean over classes that occur in truth or prediction
    pixel_accuracy: float
    mean_accuracy: float  # mean recall over classes that occur in the truth
    iou: np.ndarray  # [K] float64, NaN for a class that does not occur


def scores(matrix: np.ndarray) -> Scores:
    """mIoU, accuracies and the IoU of every class.

    Args:
        matrix: [K K] counts, of `confusion`, added up over images.
    Raises: ValueError if nothing was counted.
    """
    matrix = np.asarray(matrix, np.float64)
    if not matrix.sum():
        raise errors.InputError(
            "No labelled pixel was counted; all of them are ignored."
        )
    hits, truth, found = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = truth + found - hits
    with np.errstate(invalid="ignore"):
        iou, recall = hits / union, hits / truth
    return Scores(
        float(np.nanmean(iou)),
        float(hits.sum() / matrix.sum()),
        float(np.nanmean(recall)),
        iou,
    )


def starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last one ends with the side."""
    if not 0 < stride <= window:
        raise errors.InputError(f"{stride=} must lie in 1..{window}, the window.")
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - window), 0) for i in range(count)]


def enlargement(
    length: int,
    window: int,
    stride: int,
    cells: int,
    out: int,
    bilinear: Callable[[int, int], np.ndarray],
) -> np.ndarray:
    """What makes an image of predictions from those of its windows, along one side.

    A window's cells are enlarged to its pixels, pixels that several windows cover are
    averaged, and the whole is resized. All of that is linear, and separable because
    windows form a grid: so it is one matrix a side, and no array of the size of an
    enlarged image is ever made.

    Args:
        length: pixels of the image that the windows were cut from.
        window, stride: pixels; a shorter image was padded to one window.
        cells: predictions of a window.
        out: pixels of the result.
        bilinear: (from, to) -> [to from] weights of a resize.
    Returns: [out windows*cells] float32.
    """
    places = starts(length, window, stride)
    grow = bilinear(cells, window)[:length]
    covered, parts = np.zeros(length), []
    for first in places:
        covered[first : first + window] += 1
    resize = bilinear(length, out) / covered
    for first in places:
        parts.append(resize[:, first : first + window] @ grow)
    return np.concatenate(parts, 1).astype(np.float32)


@jax.jit
def shares(maps: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Probabilities of some rows of an image.

    Args:
        maps: [n m h w K] logits of n x m windows of h x w cells.
        rows: [r n*h], some rows of `enlargement`.
        columns: [W m*w], of `enlargement`.
    Returns: [r W K] float32.
    """
    n, m, h, w, k = maps.shape
    x = maps.astype(jnp.float32).swapaxes(1, 2).reshape(n * h, m * w, k)
    high = jax.lax.Precision.HIGHEST
    x = jnp.einsum("rh,hwk->rwk", rows, x, precision=high)
    return jax.nn.softmax(jnp.einsum("Ww,rwk->rWk", columns, x, precision=high))


class Scaled(NamedTuple):
    """Logits of the windows of an image at one scale, perhaps mirrored."""

    maps: np.ndarray  # [n m h w K]
    rows: np.ndarray  # [H n*h] float32, of `enlargement`
    columns: np.ndarray  # [W m*w] float32; upside down for a mirrored image


def classified(views: Sequence[Scaled]) -> np.ndarray:
    """The class of every pixel, by the mean probability of several views.

    Args:
        views: of one image.
    Returns: [H W] int32.
    """
    height = len(views[0].rows)
    found = []
    for first in range(0, height, CHUNK):
        total = 0.0
        for view in views:
            rows = view.rows[first : first + CHUNK]
            # Equal shapes for all chunks: one compilation.
            rows = np.pad(rows, ((0, CHUNK - len(rows)), (0, 0)))
            total = total + shares(view.maps, rows, view.columns)
        found.append(np.asarray(total.argmax(-1), np.int32))
    return np.concatenate(found)[:height]
