"""Monocular depth: the losses of a head, crops of evaluation, and the errors."""

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors

EPS = 1e-3  # metres, added inside logarithms
NYU = (480, 640)  # pixels, height and width of NYU's images
SHARES = {  # top, bottom, left, right, as shares of a side
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
CROPS = ("none", "nyu", *SHARES)
"""none; Eigen's crop of NYU; Garg's and Eigen's of KITTI."""


ERRORS = ("rmse", "rmse_log", "abs_rel", "sq_rel", "log10", "silog")
"""Metrics of depth that are no shares."""

METRICS = (*ERRORS, "delta1", "delta2", "delta3")
"""All of `metrics`, in their order."""


def valid(target: jax.Array, max_depth: float) -> jax.Array:
    """Where the truth is known and counts: above 0 and at most `max_depth` metres."""
    return (target > 0) & (target <= max_depth)


def _log_ratio(depth: jax.Array, target: jax.Array, known: jax.Array) -> jax.Array:
    """log depth - log truth, 0 where unknown; without a NaN in its gradient."""
    safe = jnp.where(known, target, 1.0)
    return jnp.where(known, jnp.log(depth + EPS) - jnp.log(safe + EPS), 0.0)


def sigmoid_log(
    depth: jax.Array,
    target: jax.Array,
    step: jax.Array | int,
    *,
    max_depth: float = 10.0,
    warmup: int = 100,
) -> jax.Array:
    """Scale-invariant error of the logarithm, known as SigLoss.

    sqrt(var(g) + 0.15 mean(g)^2) of g = log depth - log truth; in the first steps only
    the mean, so that the scale is found first.

    Args:
        depth: [B H W] metres, > -EPS.
        target: [B H W] metres, 0 where unknown.
        step: updates so far.
        max_depth: metres; farther pixels are left out.
        warmup: steps with the mean alone.
    Returns: float32 scalar, 0 if no pixel is known.
    Source: arXiv:1406.2283 eq. 4 in the form of arXiv:2011.14141 eq. 1.
    Differs: over all pixels of the batch; the reference takes the mean of its GPUs.
    """
    depth, target = depth.astype(jnp.float32), target.astype(jnp.float32)
    known = valid(target, max_depth)
    g, n = _log_ratio(depth, target, known), known.sum()
    mean = g.sum() / jnp.maximum(n, 1)
    spread = jnp.where(known, (g - mean) ** 2, 0.0).sum() / jnp.maximum(n - 1, 1)
    total = jnp.where(step < warmup, 0.0, spread) + 0.15 * mean**2
    # The root has an infinite slope at 0, which a perfect or empty batch would meet.
    return jnp.where(n > 0, jnp.sqrt(jnp.maximum(total, 1e-12)), 0.0)


def gradient(
    depth: jax.Array, target: jax.Array, *, max_depth: float = 10.0, scales: int = 4
) -> jax.Array:
    """Difference of the slopes of log depth and log truth, on several scales.

    Args:
        depth: [B H W] metres.
        target: [B H W] metres, 0 where unknown.
        max_depth: metres; farther pixels are left out.
        scales: 1 takes every pixel, each further one every 2nd, 4th, 6th ...
    Returns: float32 scalar, the sum over scales of the mean over known pixels.
    Source: arXiv:1804.00607 eq. 4; slopes over two pixels.
    Differs: along rows and columns of each image. The reference slices the axes of
        batch and channel instead, which leaves nothing of its term.
    """
    depth, target = depth.astype(jnp.float32), target.astype(jnp.float32)
    total = 0.0
    for scale in range(scales):
        every = max(2 * scale, 1)
        near, truth = (x[:, ::every, ::every] for x in (depth, target))
        known = valid(truth, max_depth)
        g = _log_ratio(near, truth, known)
        down = jnp.abs(g[:, 2:] - g[:, :-2]) * (known[:, 2:] & known[:, :-2])
        across = jnp.abs(g[:, :, 2:] - g[:, :, :-2])
        across = across * (known[:, :, 2:] & known[:, :, :-2])
        total = total + (down.sum() + across.sum()) / jnp.maximum(known.sum(), 1)
    return total


def inside(shape: tuple[int, int], crop: str) -> np.ndarray:
    """[H W] bool, the part of an image that is judged.

    Args:
        shape: (H, W) pixels.
        crop: one of CROPS.
    Raises: ValueError for another crop, or `nyu` with images of another size.
    """
    if crop not in CROPS:
        raise errors.InputError(
            f"{crop=} is unknown; choose one of {', '.join(CROPS)}."
        )
    found = np.zeros(shape, bool)
    if crop == "none":
        found[:] = True
    elif crop == "nyu":
        if tuple(shape) != NYU:
            raise errors.InputError(
                f"The crop 'nyu' is for images of 480x640 pixels, not "
                f"{shape[0]}x{shape[1]}; set eval_crop=none."
            )
        found[45:471, 41:601] = True
    else:
        top, bottom, left, right = SHARES[crop]
        rows, columns = (int(s * shape[0]) for s in (top, bottom)), (left, right)
        found[slice(*rows), slice(*(int(s * shape[1]) for s in columns))] = True
    return found


def metrics(
    depth: np.ndarray,
    target: np.ndarray,
    *,
    min_depth: float = 1e-3,
    max_depth: float = 10.0,
    crop: str = "none",
) -> dict[str, float]:
    """How far a depth map is from the truth.

    Args:
        depth: [H W] metres; brought into the range first.
        target: [H W] metres, 0 where unknown.
        min_depth, max_depth: metres; pixels outside are left out.
        crop: of `inside`.
    Returns: rmse and rmse_log (metres and log metres), abs_rel, sq_rel, log10,
        silog (times 100), delta1..3 (shares with a ratio below 1.25^n); empty if no
        pixel counts.
    Raises: ValueError if shapes differ or a prediction is not finite.
    Source: arXiv:1406.2283 section 4.2; arXiv:1907.10326 section 4.2.
    """
    depth, target = (np.asarray(x, np.float64) for x in (depth, target))
    if depth.shape != target.shape:
        raise errors.InputError(f"{depth.shape=} and {target.shape=} differ.")
    if not np.isfinite(depth).all():
        raise errors.InputError(
            "A predicted depth is not finite; the head has diverged."
        )
    known = (target > min_depth) & (target < max_depth) & inside(target.shape, crop)
    if not known.any():
        return {}
    d, t = np.clip(depth[known], min_depth, max_depth), target[known]
    g, ratio = np.log(d) - np.log(t), np.maximum(d / t, t / d)
    return {
        "rmse": float(np.sqrt(np.mean((d - t) ** 2))),
        "rmse_log": float(np.sqrt(np.mean(g**2))),
        "abs_rel": float(np.mean(np.abs(d - t) / t)),
        "sq_rel": float(np.mean((d - t) ** 2 / t)),
        "log10": float(np.mean(np.abs(np.log10(d) - np.log10(t)))),
        "silog": float(100 * np.sqrt(max(np.mean(g**2) - np.mean(g) ** 2, 0.0))),
        "delta1": float(np.mean(ratio < 1.25)),
        "delta2": float(np.mean(ratio < 1.25**2)),
        "delta3": float(np.mean(ratio < 1.25**3)),
    }
