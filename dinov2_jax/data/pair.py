"""A photograph with a value for every pixel."""

from typing import NamedTuple

import numpy as np

from dinov2_jax import errors


class Pair(NamedTuple):
    """One photograph and what is known of its pixels."""

    image: np.ndarray  # [H W 3] uint8 RGB
    target: np.ndarray  # [H W] int32 labels, -1 ignored; or float32 metres, 0 unknown


def require_one_size(
    image: tuple[int, ...], target: tuple[int, ...], name: str, other: str
) -> None:
    """Raises ValueError, with both names, unless a photograph and its map fit.

    Args:
        image, target: (height, width, ...) pixels.
        name, other: what they are called.
    """
    if image[:2] != target[:2]:
        raise errors.InputError(
            f"{name} has {_size(image)} pixels, but {other} has {_size(target)}; they "
            "must be equal."
        )


def _size(shape: tuple[int, ...]) -> str:
    """Height x width."""
    return "x".join(map(str, shape[:2]))
