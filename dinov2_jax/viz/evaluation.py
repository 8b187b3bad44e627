"""Pictures of an evaluation: a confusion matrix, and queries with what they found."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

GAP = 6  # pixels between tiles
FRAME = 4  # pixels of a coloured frame
GOOD, BAD, PLAIN = (35, 118, 79), (176, 42, 42), (160, 160, 160)
LARGEST = 640  # pixels, side of the matrix
LOW, HIGH = np.array([246, 247, 249]), np.array([31, 74, 122])


def confusion_picture(matrix: np.ndarray) -> np.ndarray:
    """A confusion matrix as a picture; dark is a large share of the true class.

    Args:
        matrix: [K K] counts, true class down, guess across.
    Returns: [H W 3] uint8, a square a cell, at most 24 pixels wide.
    """
    counts = np.asarray(matrix, np.float64)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The root: a share of a hundredth is still seen.
    colors = LOW + np.sqrt(share)[..., None] * (HIGH - LOW)
    cell = max(1, min(24, LARGEST // len(counts)))
    picture = np.round(colors).astype(np.uint8)
    return picture.repeat(cell, axis=0).repeat(cell, axis=1)


def found_picture(
    queries: Sequence[np.ndarray],
    found: Sequence[Sequence[np.ndarray]],
    right: Sequence[Sequence[bool]],
    side: int = 112,
) -> np.ndarray:
    """Each query with what it found beside it, framed green where it belongs.

    Args:
        queries: [h w 3] uint8 each, at least one.
        found: for each query images, best first.
        right: for each of these whether it belongs to the query.
        side: pixels of a tile.
    Returns: [H W 3] uint8, a row a query.
    """
    columns = 1 + max(len(row) for row in found)
    step = side + GAP
    size = (len(queries) * step + GAP, columns * step + 2 * GAP, 3)
    sheet = np.full(size, 255, np.uint8)
    for line, (query, row, marks) in enumerate(zip(queries, found, right)):
        top = GAP + line * step
        tiles = [(query, PLAIN), *((x, GOOD if m else BAD) for x, m in zip(row, marks))]
        for place, (image, color) in enumerate(tiles):
            left = GAP + place * step + (GAP if place else 0)
            sheet[top : top + side, left : left + side] = color
            inner = side - 2 * FRAME
            tile = _fitted(image, inner)
            a, b = top + FRAME, left + FRAME
            sheet[a : a + inner, b : b + inner] = tile
    return sheet


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """An image inside a white square."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(n * scale)) for n in image.shape[:2])
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    tile = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    tile[top : top + height, left : left + width] = np.asarray(small)
    return tile
