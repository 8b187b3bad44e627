"""A photograph with a value for every pixel."""

import io
import pathlib
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data import decode

FAILURES = (
    *(OSError, ValueError, LookupError, TypeError, SyntaxError, ArithmeticError),
    *(struct.error, Image.DecompressionBombError),
)
"""What Pillow raises of a header."""


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


def header_size(file: pathlib.Path | bytes) -> tuple[int, int]:
    """(height, width) of an encoded photograph, by its header.

    Raises: DecodeError or OSError if it is none.
    """
    try:
        opened = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(opened, formats=decode.FORMATS) as picture:
            return picture.height, picture.width
    except FAILURES:  # the decoder tells what it is
        data = file if isinstance(file, bytes) else file.read_bytes()
        return decode.decode(data).shape[:2]


def _size(shape: tuple[int, ...]) -> str:
    """Height x width."""
    return "x".join(map(str, shape[:2]))
