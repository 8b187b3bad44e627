"""Position embeddings for another grid, equal to PyTorch's bicubic resize.

`jax.image.resize` knows one cubic kernel and no scale offset; the released models
need both of PyTorch's kernels and the reference's 0.1 offset.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel of sharpness `a`, support 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _plain_weights(step: float, n_in: int, n_out: int) -> np.ndarray:
    """[n_out n_in] weights: a = -0.75, four taps, the border value repeated outside."""
    at = (np.arange(n_out) + 0.5) * step - 0.5
    first = np.floor(at).astype(int)
    weights = np.zeros((n_out, n_in))
    for tap in range(-1, 3):
        column = np.clip(first + tap, 0, n_in - 1)
        np.add.at(weights, (np.arange(n_out), column), _cubic(at - first - tap, -0.75))
    return weights


def _antialias_weights(step: float, n_in: int, n_out: int) -> np.ndarray:
    """[n_out n_in] weights: a = -0.5, stretched when shrinking, renormalised inside."""
    stretch = max(step, 1.0)
    center = (np.arange(n_out)[:, None] + 0.5) * step
    pixel = np.arange(n_in)[None]
    low = np.maximum(np.trunc(center - 2 * stretch + 0.5), 0)
    high = np.minimum(np.trunc(center + 2 * stretch + 0.5), n_in)
    weights = _cubic((pixel - center + 0.5) / stretch, -0.5)
    weights = np.where((pixel >= low) & (pixel < high), weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def resize_weights(n_in: int, n_out: int, antialias: bool, offset: float) -> np.ndarray:
    """Matrix of a one-dimensional bicubic resize, as PyTorch computes it.

    Args:
        n_in: length of the source axis.
        n_out: length wanted.
        antialias: PyTorch's antialiased kernel, else its plain one; they differ also
            when enlarging.
        offset: added to `n_out` in the scale that PyTorch is given, in [0, 1); with 0
            it is given the size itself, and nothing is rounded.
    Returns: [n_out n_in] float64.
    Raises: ValueError if the scale with its offset does not yield `n_out` samples.
    """
    if offset and math.floor(n_in * ((n_out + offset) / n_in)) != n_out:
        raise errors.InputError(
            f"Resizing {n_in} to {n_out} positions with offset {offset} yields another "
            "number; use an offset in [0, 1), such as the released 0 and 0.1."
        )
    if antialias and n_in == n_out:
        return np.eye(n_in)  # its antialiased kernel passes over such an axis
    weights = _antialias_weights if antialias else _plain_weights
    return weights(n_in / (n_out + offset), n_in, n_out)


def resize(
    table: jax.Array,
    grid: tuple[int, int],
    antialias: bool,
    offset: float,
    source: tuple[int, int] | None = None,
) -> jax.Array:
    """Position embedding of a `grid` of patches from the table of another.

    Args:
        table: [1 1+M*M D] cls entry, then the table's grid row by row.
        grid: rows and columns of patches wanted.
        antialias: see `resize_weights`.
        offset: see `resize_weights`; 0.1 in the released models without registers.
        source: rows and columns of the table's own grid; None for a square one.
    Returns: [1 1+rows*columns D] float32; the table itself if it is of that grid.
    Raises: ValueError if the table is of another grid than `source`, or of no square.
    Source: the reference's `interpolate_pos_encoding`.
    """
    source = (math.isqrt(table.shape[1] - 1),) * 2 if source is None else tuple(source)
    if math.prod(source) != table.shape[1] - 1:
        raise errors.InputError(
            f"A position table of {table.shape[1]} entries is not a cls entry plus a "
            f"grid of {source[0]}x{source[1]}; a square grid needs 1 + M*M entries."
        )
    table = table.astype(jnp.float32)
    if tuple(grid) == source:
        return table
    rows, columns = (
        jnp.asarray(resize_weights(m, n, antialias, offset), jnp.float32)
        for m, n in zip(source, grid)
    )
    given = table[0, 1:].reshape(*source, -1)
    resized = jnp.einsum(
        "hm,wn,mnd->hwd", rows, columns, given, precision=jax.lax.Precision.HIGHEST
    )
    patches = resized.reshape(1, -1, table.shape[-1])
    return jnp.concatenate([table[:, :1], patches], axis=1)
