"""Figures about features themselves, and baselines that need no network."""

import numpy as np

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


def raw_pixels(images: np.ndarray, side: int = 8) -> np.ndarray:
    """[n H W 3] uint8 images averaged to side x side pixels: [n side*side*3].

    Raises: ValueError if the images are smaller than `side`.
    """
    n, height, width, channels = images.shape
    if height < side or width < side:
        raise ValueError(f"Images of {height}x{width} are smaller than {side}x{side}.")
    rows, columns = height // side * side, width // side * side
    x = images[:, :rows, :columns].astype(np.float32)
    x = x.reshape(n, side, rows // side, side, columns // side, channels).mean((2, 4))
    return x.reshape(n, -1)


def color_histograms(images: np.ndarray, bins: int = 8) -> np.ndarray:
    """[n H W 3] uint8 images as joint RGB histograms: [n bins^3] float32.

    Args:
        images: see above.
        bins: of each colour, 1 to 256.
    """
    codes = images.astype(np.int64) * bins // 256
    codes = (codes[..., 0] * bins + codes[..., 1]) * bins + codes[..., 2]
    found = [np.bincount(c.ravel(), minlength=bins**3) for c in codes]
    return np.stack(found).astype(np.float32)
