"""Training crops of photographs with their maps: for segmentation and for depth."""

import dataclasses

import cv2
import numpy as np

from dinov2_jax.data import dense

PADDING = (124, 116, 104)  # the mean colour of ImageNet: zero, once normalised


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H W 3] uint8 at (height, width); bilinear without antialias, as mmseg's."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def scaled_size(image: np.ndarray, side: int, scale: float) -> tuple[int, int]:
    """(height, width) of an image whose shorter side becomes `side * scale` pixels.

    Source: mmsegmentation cuts the product to an integer (640 x 1.32 is 844), mmcv
    rounds the sides, halves upwards.
    Differs: the longer side has no limit; the reference's protocol of one scale limits
    it to 2,048 pixels, which images of an aspect above 4 would meet.
    """
    height, width = image.shape[:2]
    factor = max(int(side * scale), 1) / min(height, width)
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def padded(array: np.ndarray, size: tuple[int, int], fill) -> np.ndarray:
    """An image or map, filled up below and to the right to at least `size`."""
    shape = tuple(max(n, m) for n, m in zip(array.shape[:2], size))
    if shape == array.shape[:2]:
        return array
    out = np.full((*shape, *array.shape[2:]), fill, array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationViews:
    """Resized, cropped, flipped and recoloured.

    Fields: `crop` side in pixels; `side` the shorter side before `ratio`, the range of
    the factor that enlarges it; `most` the largest share of a crop that one class may
    have, tried ten times; `flip` probability; `recolor` whether to change colours.
    Source: mmsegmentation's Resize, RandomCrop, RandomFlip, PhotoMetricDistortion with
    the settings of the reference.
    """

    crop: int = 512
    side: int = 512
    ratio: tuple[float, float] = (0.5, 2.0)
    most: float = 0.75
    flip: float = 0.5
    recolor: bool = True

    def __call__(self, pair: dense.Pair, rng: np.random.Generator) -> dense.Pair:
        size = scaled_size(pair.image, self.side, rng.uniform(*self.ratio))
        image = resized(pair.image, size)
        labels = cv2.resize(pair.target, size[::-1], interpolation=cv2.INTER_NEAREST)
        for _ in range(10):
            place = _place(labels.shape, (self.crop, self.crop), rng)
            counts = np.unique(labels[place], return_counts=True)
            counts = counts[1][counts[0] != dense.IGNORED]
            if len(counts) > 1 and counts.max() < self.most * counts.sum():
                break
        image, labels = image[place], labels[place]
        if rng.random() < self.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.recolor:
            image = recolored(image, rng)
        size = (self.crop, self.crop)
        return dense.Pair(
            padded(image, size, PADDING), padded(labels, size, dense.IGNORED)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthViews:
    """Turned by a little, flipped, cropped and recoloured.

    Fields: `crop` (height, width) in pixels; `border` (top, bottom, left, right) that
    is kept of every photograph first, or None for all of it; `degrees` of turning, in
    half of the cases; `flip` probability; `recolor` probability; ranges of `gamma`,
    `brightness` and the `color` of each channel, whose order does not matter.
    Source: RandomRotate, RandomFlip, RandomCrop and ColorAug of the
    Monocular-Depth-Estimation-Toolbox, with the settings of its configs for NYU
    (brightness 0.75 to 1.25) and KITTI (0.9 to 1.1). As there, gamma is the power of
    levels of 0 to 255, which darkens or brightens much more than that of shares.
    Differs: colours are rounded down to whole levels, as pictures have them.
    """

    crop: tuple[int, int] = (416, 544)
    border: tuple[int, int, int, int] | None = None
    degrees: float = 2.5
    flip: float = 0.5
    recolor: float = 0.5
    gamma: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.75, 1.25)
    color: tuple[float, float] = (0.9, 1.1)

    def __call__(self, pair: dense.Pair, rng: np.random.Generator) -> dense.Pair:
        image, depth = pair
        if self.border is not None:
            top, bottom, left, right = self.border
            image, depth = (x[top:bottom, left:right] for x in (image, depth))
        if self.degrees and rng.random() < 0.5:
            angle = rng.uniform(-self.degrees, self.degrees)
            image = _turned(image, angle, cv2.INTER_LINEAR)
            depth = _turned(depth, angle, cv2.INTER_NEAREST)
        if rng.random() < self.flip:
            image, depth = image[:, ::-1], depth[:, ::-1]
        place = _place(depth.shape, self.crop, rng)
        image, depth = image[place], depth[place]
        if rng.random() < self.recolor:
            image = self._recolored(image, rng)
        return dense.Pair(
            padded(image, self.crop, PADDING), padded(depth, self.crop, 0)
        )

    def _recolored(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """With another gamma, brightness and tint."""
        factor = rng.uniform(*self.brightness) * rng.uniform(*self.color, 3)
        levels = np.arange(256.0)[:, None]
        table = np.clip(levels ** rng.uniform(*self.gamma) * factor, 0, 255)
        return np.stack([table[image[..., c], c] for c in range(3)], -1).astype(
            np.uint8
        )


def _place(
    shape: tuple[int, ...], crop: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a random crop, or all of a side that is shorter."""
    starts = [int(rng.integers(max(n - m, 0) + 1)) for n, m in zip(shape, crop)]
    return tuple(slice(start, start + m) for start, m in zip(starts, crop))


def _turned(array: np.ndarray, angle: float, how: int) -> np.ndarray:
    """About the middle by an angle in degrees; what comes from outside is 0."""
    height, width = array.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return cv2.warpAffine(array, turn, (width, height), flags=how)


def recolored(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed, each in half of the cases.

    Args:
        image: [H W 3] uint8.
        rng: decides; contrast comes before or after saturation and hue.
    Returns: [H W 3] uint8.
    """
    brightness, late, contrast, saturation, hue = rng.random(5) < 0.5
    shift = rng.uniform(-32, 32) * brightness
    factor = rng.uniform(0.5, 1.5) if contrast else 1.0
    image = _levels(image, 1.0, shift)
    image = image if late else _levels(image, factor, 0)
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    if saturation:
        hsv[..., 1] = _levels(hsv[..., 1], rng.uniform(0.5, 1.5), 0)
    if hue:
        hsv[..., 0] = (hsv[..., 0] + rng.integers(-18, 18)) % 180
    if saturation or hue:
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return _levels(image, factor, 0) if late else image


def _levels(values: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """uint8 values times a factor plus a shift, within 0..255."""
    table = np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8)
    return table[values]
