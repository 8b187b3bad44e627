"""The views of one image by Pillow and OpenCV, on the host.

Source: arXiv:2304.07193 section 4; operation by operation what torchvision does with
Pillow images, which is what the DINOv2 reference trains on.
"""

import cv2
import numpy as np

from dinov2_jax.data import hue, resizing
from dinov2_jax.data.draws import KERNEL, Draws, MultiCrop

LUMA = np.array([[19595, 38470, 7471]], np.float32)  # shares of 2^16


def views(
    image: np.ndarray, draws: Draws, multicrop: MultiCrop, resize: str = "pillow"
) -> tuple[np.ndarray, np.ndarray]:
    """All views of one image.

    Args:
        image: [H W 3] uint8 RGB.
        draws: [V ...] for its size.
        multicrop: what they were drawn for.
        resize: a way of resizing.WAYS.
    Returns: [U S S 3] uint8 global views, [V-U s s 3] uint8 local views.
    """
    cut, number = resizing.WAYS[resize](image), multicrop.global_number
    size, small = multicrop.global_size, multicrop.local_size
    views = np.empty((number, size, size, 3), np.uint8)
    local = np.empty((multicrop.local_number, small, small, 3), np.uint8)
    for out, *draw in zip((*views, *local), *draws):
        out[:] = view(cut, Draws(*draw), len(out), multicrop.solarize_threshold)
    return views, local


def view(cut: resizing.Cut, draw: Draws, size: int, threshold: int) -> np.ndarray:
    """One view: the pixels of its draws.

    Args:
        cut: of the whole image.
        draw: what to do with it, of one view.
        size: side of the view, pixels.
        threshold: of solarisation, 0..255.
    Returns: [size size 3] uint8.
    """
    out = cut(draw.box, size)
    if draw.flip:
        out = flipped(out)
    if draw.jitter:
        for step in draw.order:
            out = JITTER[step](out, draw.factors[step])
    if draw.gray:
        out = grayscale(out)
    if draw.sigma:
        out = blurred(out, draw.sigma)
    return solarized(out, threshold) if draw.solarize else out


def flipped(image: np.ndarray) -> np.ndarray:
    """[H W 3] uint8: the image with left and right exchanged."""
    return cv2.flip(image, 1)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """[H W 3] uint8: blended with black; factor >= 0, 1 changes nothing."""
    return _toward(image, 0, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """[H W 3] uint8: blended with its rounded mean gray; factor >= 0."""
    return _toward(image, int(_gray(image).mean() + 0.5), factor)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """[H W 3] uint8: blended with its grayscale; factor >= 0."""
    gray = grayscale(image)
    out = image.astype(np.float32)
    out -= gray
    out *= np.float32(factor)
    out += gray
    return np.clip(out, 0, 255, out=out).astype(np.uint8)


def grayscale(image: np.ndarray) -> np.ndarray:
    """[H W 3] uint8: three equal channels of luma."""
    return cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """[H W 3] uint8: Gaussian blur, sigma in pixels, border pixels not repeated."""
    # cv2.GaussianBlur has coarser fixed-point weights: off by up to two levels.
    kernel = cv2.getGaussianKernel(KERNEL, float(sigma), cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def solarized(image: np.ndarray, threshold: int) -> np.ndarray:
    """[H W 3] uint8: values at or above the threshold inverted."""
    values = np.arange(256)
    table = np.where(values < threshold, values, 255 - values).astype(np.uint8)
    return cv2.LUT(image, table)


JITTER = (brightness, contrast, saturation, hue.turned)  # numbered as in Draw.order


def _gray(image: np.ndarray) -> np.ndarray:
    """[H W] uint8 luma by Pillow's formula, which OpenCV's differs from."""
    out = cv2.transform(image.astype(np.float32), LUMA)  # whole numbers below 2^24
    out += 2**15
    out *= 2**-16
    return out.astype(np.uint8)


def _toward(image: np.ndarray, base: int, factor: float) -> np.ndarray:
    """Blend with a constant: float32, clipped, then cut to uint8 as Pillow does."""
    values = np.arange(256, dtype=np.float32) - base
    table = np.clip(values * np.float32(factor) + base, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
