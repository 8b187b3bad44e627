"""Cutting boxes out of an image and resizing them, antialiased bicubic, on the host."""

import importlib.util
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from dinov2_jax import errors

Box = np.ndarray | tuple[int, int, int, int]  # top, left, height, width in pixels
Cut = Callable[[Box, int], np.ndarray]  # box, side of the result -> [side side 3] uint8


def pillow(image: np.ndarray) -> Cut:
    """Cuts as torchvision does with Pillow images, which the reference trains on.

    Args:
        image: [H W 3] uint8.
    """
    picture = Image.fromarray(image)

    def cut(box: Box, size: int) -> np.ndarray:
        top, left, height, width = map(int, box)
        # Cropped first: resize(box=...) would read pixels beyond the box.
        part = picture.crop((left, top, left + width, top + height))
        return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))

    return cut


def simd(image: np.ndarray) -> Cut:
    """Cuts in a quarter of Pillow's time, with the vector units of the processor.

    Args:
        image: [H W 3] uint8.
    Differs: some values by a level, because weights are shorter; in tall boxes more of
        them, because Pillow 13 takes columns first there and this never does.
    """
    import cykooz_resizer as fast

    # It takes columns first, so it is given rows as columns.
    turned, resizer = cv2.transpose(image), fast.Resizer()
    bicubic = fast.ResizeAlg.convolution(fast.FilterType.catmull_rom)
    bicubic = fast.ResizeOptions(resize_alg=bicubic)
    pixels = fast.PixelType.U8x3

    def cut(box: Box, size: int) -> np.ndarray:
        top, left, height, width = map(int, box)
        part = turned[left : left + width, top : top + height].tobytes()
        out = fast.ImageData(size, size, pixels)
        resizer.resize(fast.ImageData(height, width, pixels, part), out, bicubic)
        out = np.frombuffer(out.get_buffer(), np.uint8)
        return cv2.transpose(out.reshape(size, size, 3))

    return cut


WAYS = {"pillow": pillow, "simd": simd}


def require(way: str) -> None:
    """Raises ValueError if a way is unknown or its package is missing."""
    if way not in WAYS:
        raise errors.InputError(
            f"data.resize={way!r}; choose one of {', '.join(WAYS)}."
        )
    if way == "simd" and importlib.util.find_spec("cykooz_resizer") is None:
        raise errors.InputError(
            "data.resize='simd' needs cykooz.resizer; pip install 'dinov2_jax[simd]', "
            "or choose pillow."
        )
