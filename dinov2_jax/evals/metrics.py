"""Figures about features and guesses, and baselines that need no network."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors

SAME = 1e-10  # variance by mean square; rounding of a float32 network leaves less


def effective_rank(features: np.ndarray) -> float:
    """Exponential of the entropy of the centred features' variance spectrum.

    Args:
        features: [n D].
    Returns: between 1 (one direction) and min(n, D) (all alike); 0 if all rows are
        equal up to rounding, whose own rank is high; NaN if one is not finite.
    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007, on variances.
    """
    rows = features.astype(np.float64)
    if not np.isfinite(rows).all():
        return float("nan")
    x = rows - rows.mean(0)
    gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    values = np.maximum(np.linalg.eigvalsh(gram), 0.0)
    if values.sum() <= SAME * (rows**2).sum():
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def unit_std(features: np.ndarray) -> float:
    """Standard deviation over rows of unit-length features, times sqrt(D).

    Returns: near 1 for features spread over the sphere, 0 if all are equal.
    """
    x = features.astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return float(x.std(0).mean() * np.sqrt(x.shape[1]))


@functools.partial(jax.jit, static_argnames="side")
def raw_pixels(images: jax.Array, side: int = 8) -> jax.Array:
    """Images averaged to side x side pixels, where they lie.

    Args:
        images: [n H W C] uint8.
        side: of the result, pixels; rows and columns beyond its multiple are left out.
    Returns: [n side*side*C] float32, in 0..255.
    Raises: ValueError if the images are smaller than `side`.
    """
    n, height, width, channels = images.shape
    if height < side or width < side:
        raise errors.InputError(
            f"Images of {height}x{width} are smaller than {side}x{side}."
        )
    high, wide = height // side, width // side
    x = images[:, : high * side, : wide * side].astype(jnp.int32)  # exact sums
    x = x.reshape(n, side, high, side, wide, channels).sum((2, 4))
    return x.reshape(n, -1).astype(jnp.float32) / (high * wide)


@functools.partial(jax.jit, static_argnames="bins")
def color_histograms(images: jax.Array, bins: int = 8) -> jax.Array:
    """Joint RGB histograms of images, counted where they lie.

    Args:
        images: [n H W 3] uint8.
        bins: of each colour, 1 to 256.
    Returns: [n bins^3] float32 numbers of pixels.
    """
    codes = images.astype(jnp.int32) * bins // 256
    codes = (codes[..., 0] * bins + codes[..., 1]) * bins + codes[..., 2]
    codes = codes.reshape(len(images), -1)
    counts = jax.vmap(functools.partial(jnp.bincount, length=bins**3))(codes)
    return counts.astype(jnp.float32)


def confusion(labels: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """[classes classes] int64 counts: true class down, guess across."""
    codes = np.asarray(labels, np.int64) * classes + guesses
    return np.bincount(codes, minlength=classes**2).reshape(classes, classes)


def per_class(matrix: np.ndarray) -> np.ndarray:
    """Share of each class that was guessed, of `confusion`; NaN of an empty class."""
    counts = matrix.sum(1)
    return np.where(counts > 0, np.diag(matrix) / np.maximum(counts, 1), np.nan)


def multi_label_accuracy(guesses: np.ndarray, labels: Sequence[Sequence[int]]) -> float:
    """Share of images whose guess is one of their labels, of those that have any.

    Raises: ValueError if no image has a label.
    Source: arXiv:2006.07159 (ImageNet ReaL).
    """
    hits = [int(guess) in some for guess, some in zip(guesses, labels) if len(some)]
    if not hits:
        raise errors.InputError("No image has a label; check the list of labels.")
    return float(np.mean(hits))


ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's mean error under each corruption, as published with ImageNet-C."""


def mean_corruption_error(rates: Mapping[str, Sequence[float]]) -> float:
    """Mean over corruptions of the error by AlexNet's; below 1 is better than it.

    Args:
        rates: each corruption of ALEXNET -> the error in [0, 1] of each severity.
    Raises: ValueError if one is missing or not known.
    Source: arXiv:1903.12261 section 4.
    """
    if set(rates) != set(ALEXNET):
        wrong = sorted(set(rates) ^ set(ALEXNET))
        raise errors.InputError(
            f"The mean corruption error takes the {len(ALEXNET)} corruptions of "
            f"ImageNet-C; missing or unknown: {', '.join(wrong)}."
        )
    return float(np.mean([np.mean(rates[k]) / ALEXNET[k] for k in ALEXNET]))
