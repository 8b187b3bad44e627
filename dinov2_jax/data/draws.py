"""Every random choice of the multi-crop augmentation, before any pixel is touched.

Chosen once on the host, applied in one of two places: by Pillow and OpenCV on the host
(augment) or on the devices (cropping). Both make the same views of the same draws.

Source: arXiv:2304.07193 section 4, with torchvision's distributions, which is what the
DINOv2 reference trains on.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from dinov2_jax import errors

CROP_ATTEMPTS = 10  # boxes tried before the central crop
KERNEL = 9  # pixels, side of the blur kernel
# Uniform numbers of a view: area, aspect, top and left of each attempt; flip, jitter,
# gray, blur and solarize; factors and order of the jitter; sigma.
_PARTS = np.cumsum([4 * CROP_ATTEMPTS, 5, 4, 4])
NUMBERS = int(_PARTS[-1]) + 1


class Draws(NamedTuple):
    """The random choices of views; all fields begin with the same axes."""

    box: np.ndarray  # [... 4] int32 top, left, height, width in pixels
    flip: np.ndarray  # [...] bool
    jitter: np.ndarray  # [...] bool
    order: np.ndarray  # [... 4] int32, of brightness, contrast, saturation, hue
    factors: np.ndarray  # [... 4] float32 of brightness, contrast, saturation, hue
    gray: np.ndarray  # [...] bool
    sigma: np.ndarray  # [...] float32 of the blur, pixels of the view; 0 is no blur
    solarize: np.ndarray  # [...] bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiCrop:
    """What is drawn: global and local views of an image.

    Sizes are in pixels, scales shares of the image's area, flip, jitter, gray, blur
    and solarize probabilities. blur and solarize are (first global view, other global
    views, local views).
    Differs: the reference means to blur with (1.0, 0.1, 0.5), but hands torchvision
    the complements, so the published models saw (0.0, 0.9, 0.5): the default here.
    """

    global_size: int = 224
    local_size: int = 98
    global_number: int = 2
    local_number: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width/height of the box
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # of the colour circle, <= 0.5
    gray: float = 0.2
    blur: tuple[float, float, float] = (0.0, 0.9, 0.5)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)
    solarize_threshold: int = 128

    def __post_init__(self):
        for name in ("flip", "jitter", "gray", "blur", "solarize"):
            value = getattr(self, name)
            if not all(0 <= chance <= 1 for chance in np.ravel(value)):
                raise errors.InputError(f"{name}={value} is a probability: 0 to 1.")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise errors.InputError(
                    f"{name}={(low, high)} must be two shares of the image's area, "
                    "0 < low <= high <= 1."
                )
        if not 0 <= self.hue <= 0.5:
            raise errors.InputError(
                f"hue={self.hue} must lie in [0, 0.5], half the circle."
            )
        if self.global_number < 1 or self.local_number < 0:
            raise errors.InputError(
                f"global_number={self.global_number} must be at least 1 and "
                f"local_number={self.local_number} at least 0."
            )

    def numbers(self, rng: np.random.Generator) -> np.ndarray:
        """[V n] float64 in [0, 1): all chance that the views of one image need."""
        return rng.random((self.global_number + self.local_number, NUMBERS))

    def draws(
        self, numbers: np.ndarray, height: np.ndarray | int, width: np.ndarray | int
    ) -> Draws:
        """The choices of all views, global ones first.

        Args:
            numbers: [... V n] of `numbers`, for one image or many.
            height, width: [...] of the images, pixels.
        Returns: Draws whose fields begin with [... V].
        """
        place, chance, factors, order, sigma = np.split(numbers, _PARTS, axis=-1)
        local = np.arange(numbers.shape[-2]) >= self.global_number  # [V]
        kind = np.where(local, 2, np.minimum(np.arange(len(local)), 1))
        low, high = np.where(local[:, None], self.local_scale, self.global_scale).T
        attempts = place.reshape(*place.shape[:-1], CROP_ATTEMPTS, 4)
        height, width = np.asarray(height)[..., None], np.asarray(width)[..., None]
        flip, jitter, gray, blur, solarize = np.moveaxis(chance, -1, 0)
        blurred = blur < np.take(self.blur, kind)
        smallest, largest = self.blur_sigma
        sigma = smallest + (largest - smallest) * sigma[..., 0]
        return Draws(
            box=boxes(attempts, height, width, (low, high), self.aspect),
            flip=flip < self.flip,
            jitter=jitter < self.jitter,
            order=np.argsort(order, axis=-1).astype(np.int32),
            factors=self._factors(factors),
            gray=gray < self.gray,
            sigma=np.where(blurred, sigma, 0).astype(np.float32),
            solarize=solarize < np.take(self.solarize, kind),
        )

    def _factors(self, numbers: np.ndarray) -> np.ndarray:
        """[... 4] float32 factors of the jitter, uniform around what changes nothing."""
        neutral = np.array([1.0, 1.0, 1.0, 0.0])
        spread = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        low = np.maximum(neutral - spread, [0, 0, 0, -0.5])
        return (low + (neutral + spread - low) * numbers).astype(np.float32)


def boxes(
    numbers: np.ndarray,
    height: np.ndarray | int,
    width: np.ndarray | int,
    scale: tuple[np.ndarray | float, np.ndarray | float],
    aspect: tuple[float, float],
) -> np.ndarray:
    """The boxes of random resized crops.

    Args:
        numbers: [... A 4] in [0, 1), of A attempts at each box.
        height, width: [...] of the images, pixels.
        scale: smallest and largest share of the image's area, each [...].
        aspect: smallest and largest width/height, drawn on a log scale.
    Returns: [... 4] int32 top, left, height, width, inside the image: the first
        attempt that fits; else the whole image, cut to the nearest allowed aspect.
    """
    height, width = np.asarray(height)[..., None], np.asarray(width)[..., None]
    low, high = (np.asarray(share)[..., None] for share in scale)
    share, ratio, down, right = np.moveaxis(numbers, -1, 0)  # [... A]
    area = height * width * (low + (high - low) * share)
    ratio = np.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * ratio)
    h, w = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    top, left = np.floor(down * (height - h + 1)), np.floor(right * (width - w + 1))
    tried = np.stack([top, left, h, w], axis=-1)
    first = fits.argmax(-1)[..., None, None]
    chosen = np.take_along_axis(tried, first, axis=-2)[..., 0, :]
    # At least one pixel remains of a line one pixel thin.
    h = np.minimum(height, np.maximum(1, np.rint(width / aspect[0])))
    w = np.minimum(width, np.maximum(1, np.rint(height * aspect[1])))
    center = np.concatenate([(height - h) // 2, (width - w) // 2, h, w], axis=-1)
    return np.where(fits.any(-1)[..., None], chosen, center).astype(np.int32)
