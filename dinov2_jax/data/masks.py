"""Random block masks over the patch grid, the inputs of the iBOT loss.

Source: arXiv:2106.08254 (BEiT) algorithm 1, as used by the DINOv2 reference.
"""

import math

import numpy as np

from dinov2_jax import errors

MIN_BLOCK = 4  # patches; smallest area that is drawn for a rectangle
ATTEMPTS = 10  # rectangles tried before a mask stays smaller than its target


def max_block(size: int, patch: int) -> int:
    """Largest number of patches that one rectangle may add.

    Args:
        size: side of the square global crop, pixels.
        patch: side of a patch, pixels.
    Returns: about half of the patches: 128 for 224/14, 98 for 224/16, 10 for 70/14.
    Source: the reference's chain of multiplications and floor divisions.
    """
    return size // 2 // patch * size // patch


def upper_bound(
    rows: int, patches: int, probability: float, ratio: tuple[float, float]
) -> int:
    """Most patches that `draw` can mask in all rows together.

    Args:
        rows: crops that share the masks, >= 0.
        patches: patches of one crop, > 0.
        probability: share of the rows that get a mask, 0..1.
        ratio: smallest and largest share of a masked row's patches, 0..1.
    Returns: a static size for the buffer of masked patches.
    Raises: ValueError if probability or ratio is out of range.
    """
    edges = _edges(rows, probability, ratio)
    return int(np.floor(np.float32(patches) * edges[1:]).sum())


def draw(
    rng: np.random.Generator,
    rows: int,
    grid: tuple[int, int],
    probability: float,
    ratio: tuple[float, float],
    *,
    max_patches: float,
    aspect: float = 0.3,
) -> np.ndarray:
    """Masks of `rows` crops, True where the student sees the mask token.

    floor(rows * probability) rows are masked. Their targets come one from each of
    as many equal pieces of `ratio`, so that the total hardly varies.

    Args:
        rng: source of all random numbers.
        rows: crops, in any order: the masks are shuffled over them.
        grid: patches (down, across).
        probability: share of the rows that get a mask, 0..1.
        ratio: smallest and largest share of a masked row's patches, 0..1.
        max_patches: most patches that one rectangle may add, see `max_block`.
        aspect: smallest height/width of a rectangle; the largest is its inverse.
    Returns: [rows h w] bool.
    Raises: ValueError if probability, ratio or aspect is out of range.
    """
    if not 0 < aspect <= 1:
        raise errors.InputError(
            f"{aspect=} must lie in (0, 1]: it is the flattest block."
        )
    edges = _edges(rows, probability, ratio)
    patches = np.float32(grid[0] * grid[1])
    out = np.zeros((rows, *grid), bool)
    for row, low, high in zip(rng.permutation(rows), edges[:-1], edges[1:]):
        target = int(patches * (low + (high - low) * np.float32(rng.random())))
        _fill(rng, out[row], target, max_patches, aspect)
    return out


def add_block(
    rng: np.random.Generator, mask: np.ndarray, allowed: float, aspect: float
) -> tuple[int, int, int, int] | None:
    """Tries to add one rectangle to a mask, in place.

    Args:
        rng: source of the random numbers.
        mask: [h w] bool, changed where the rectangle lies.
        allowed: most patches that may become masked.
        aspect: smallest height/width; the largest is its inverse.
    Returns: (top, left, height, width), or None if no attempt fitted.
    """
    height, width = mask.shape
    flattest = math.log(aspect)
    # All at once: a call of the generator costs more than the numbers.
    for size, shape, down, across in rng.random((ATTEMPTS, 4)).tolist():
        # Reversed where fewer than MIN_BLOCK are allowed, as in the reference.
        area = MIN_BLOCK + (allowed - MIN_BLOCK) * size
        ratio = math.exp(flattest * (1 - 2 * shape))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h >= height or w >= width:
            continue
        top, left = int(down * (height - h + 1)), int(across * (width - w + 1))
        block = mask[top : top + h, left : left + w]
        if 0 < h * w - np.count_nonzero(block) <= allowed:
            block[:] = True
            return top, left, h, w
    return None


def _fill(rng, mask, target, max_patches, aspect) -> None:
    """Adds rectangles to one [h w] mask until its target, or until none fits."""
    count = 0
    while count < target:
        if add_block(rng, mask, min(target - count, max_patches), aspect) is None:
            return
        count = np.count_nonzero(mask)


def _edges(rows: int, probability: float, ratio: tuple[float, float]) -> np.ndarray:
    """Float32 edges of the pieces of `ratio`, one piece for each masked row."""
    if not 0 <= probability <= 1:
        raise errors.InputError(f"mask {probability=} must lie in [0, 1].")
    low, high = ratio
    if not 0 <= low <= high <= 1:
        raise errors.InputError(
            f"mask {ratio=} must be (low, high), 0 <= low <= high <= 1."
        )
    # PyTorch's float32 linspace with its fused multiply-add, counted from the nearer
    # end; the floors of the callers depend on the rounding.
    pieces = int(rows * probability)
    low, high = np.float32(low), np.float32(high)
    step = np.float64((high - low) / np.float32(max(pieces, 1)))
    i = np.arange(pieces + 1)
    edges = np.where(2 * i < pieces, low + step * i, high - step * (pieces - i))
    return edges.astype(np.float32)
