"""The views of one image by Pillow and OpenCV, on the host.

Source: arXiv:2304.07193 section 4; operation by operation what torchvision does with
Pillow images, which is what the DINOv2 reference trains on.
"""

import cv2
import numpy as np
from PIL import Image

from dinov2_jax.data import hue
from dinov2_jax.data.draws import KERNEL, Draws, MultiCrop


def views(
    image: np.ndarray, draws: Draws, multicrop: MultiCrop
) -> tuple[np.ndarray, np.ndarray]:
    """All views of one image.

    Args:
        image: [H W 3] uint8 RGB.
        draws: [V ...] for its size.
        multicrop: what they were drawn for.
    Returns: [U S S 3] uint8 global views, [V-U s s 3] uint8 local views.
    """
    picture, number = Image.fromarray(image), multicrop.global_number
    size, small = multicrop.global_size, multicrop.local_size
    views = np.empty((number, size, size, 3), np.uint8)
    local = np.empty((multicrop.local_number, small, small, 3), np.uint8)
    for out, *draw in zip((*views, *local), *draws):
        out[:] = view(picture, Draws(*draw), len(out), multicrop.solarize_threshold)
    return views, local


def view(picture: Image.Image, draw: Draws, size: int, threshold: int) -> np.ndarray:
    """One view: the pixels of its draws.

    Args:
        picture: the whole image, RGB.
        draw: what to do with it, of one view.
        size: side of the view, pixels.
        threshold: of solarisation, 0..255.
    Returns: [size size 3] uint8.
    """
    out = resized_crop(picture, draw.box, size)
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


def resized_crop(
    picture: Image.Image, box: np.ndarray | tuple[int, int, int, int], size: int
) -> np.ndarray:
    """[size size 3] uint8: a box (top, left, height, width), antialiased bicubic."""
    top, left, height, width = map(int, box)
    # Cropped first: resize(box=...) would read pixels beyond the box.
    part = picture.crop((left, top, left + width, top + height))
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def flipped(image: np.ndarray) -> np.ndarray:
    """[H W 3] uint8: the image with left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


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
    """[H W] uint8 luma with Pillow's rounding, which OpenCV's differs from."""
    return np.asarray(Image.fromarray(image).convert("L"))


def _toward(image: np.ndarray, base: int, factor: float) -> np.ndarray:
    """Blend with a constant: float32, clipped, then cut to uint8 as Pillow does."""
    values = np.arange(256, dtype=np.float32) - base
    table = np.clip(values * np.float32(factor) + base, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
