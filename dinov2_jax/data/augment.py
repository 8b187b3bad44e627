"""Multi-crop augmentation of one image: first every random choice, then the pixels.

Source: arXiv:2304.07193 section 4; operation by operation what torchvision does with
Pillow images, which is what the DINOv2 reference trains on.
"""

import dataclasses
import math

import cv2
import numpy as np
from PIL import Image

CROP_ATTEMPTS = 10  # boxes tried before the central crop
KERNEL = 9  # pixels, side of the blur kernel


@dataclasses.dataclass(frozen=True)
class Draw:
    """The random choices of one view."""

    box: tuple[int, int, int, int]  # top, left, height, width in pixels
    flip: bool
    order: tuple[int, ...]  # of brightness, contrast, saturation, hue; () is no jitter
    factors: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    gray: bool
    sigma: float | None  # of the blur, pixels of the view; None is no blur
    solarize: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiCrop:
    """Global and local views of an image, as uint8.

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
                raise ValueError(f"{name}={value} is a probability: 0 to 1.")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"{name}={(low, high)} must be two shares of the image's area, "
                    "0 < low <= high <= 1."
                )
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue={self.hue} must lie in [0, 0.5], half the circle.")
        if self.global_number < 1 or self.local_number < 0:
            raise ValueError(
                f"global_number={self.global_number} must be at least 1 and "
                f"local_number={self.local_number} at least 0."
            )

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """All views of one image.

        Args:
            image: [H W 3] uint8 RGB.
            rng: source of all random choices.
        Returns: [U S S 3] uint8 global views, [V-U s s 3] uint8 local views.
        """
        draws = self.draws(rng, *image.shape[:2])
        picture, number = Image.fromarray(image), self.global_number
        size, small = self.global_size, self.local_size
        views = np.empty((number, size, size, 3), np.uint8)
        local = np.empty((self.local_number, small, small, 3), np.uint8)
        for out, one in zip((*views, *local), draws):
            out[:] = view(picture, one, len(out), self.solarize_threshold)
        return views, local

    def draws(
        self, rng: np.random.Generator, height: int, width: int
    ) -> tuple[Draw, ...]:
        """The random choices of all views, global ones first.

        Args:
            rng: their source.
            height, width: of the image, pixels.
        Returns: one Draw a view.
        """
        kinds = [min(view, 1) for view in range(self.global_number)]
        return tuple(
            self._draw(rng, height, width, kind)
            for kind in (*kinds, *[2] * self.local_number)
        )

    def _draw(self, rng, height, width, kind) -> Draw:
        """Choices of one view; kind: 0 first global, 1 other global, 2 local."""
        scale = self.local_scale if kind == 2 else self.global_scale
        box = crop_box(rng, height, width, scale, self.aspect)
        flip, jitter, gray, blur, solarize = rng.random(5)
        spread = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        low = np.maximum(np.array([1.0, 1.0, 1.0, 0.0]) - spread, [0, 0, 0, -0.5])
        factors = low + (np.array([1.0, 1.0, 1.0, 0.0]) + spread - low) * rng.random(4)
        order, sigma = rng.permutation(4), rng.uniform(*self.blur_sigma)
        return Draw(
            box=box,
            flip=bool(flip < self.flip),
            order=tuple(order.tolist()) if jitter < self.jitter else (),
            factors=tuple(factors.tolist()),
            gray=bool(gray < self.gray),
            sigma=float(sigma) if blur < self.blur[kind] else None,
            solarize=bool(solarize < self.solarize[kind]),
        )


def crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """The box of a random resized crop.

    Args:
        rng: source of the random numbers.
        height, width: of the image, pixels.
        scale: smallest and largest share of the image's area.
        aspect: smallest and largest width/height, drawn on a log scale.
    Returns: (top, left, height, width), inside the image.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(CROP_ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return int(top), int(left), h, w
    # The whole image, cut down to the nearest allowed aspect. At least one pixel
    # remains of a line one pixel thin.
    h = min(height, max(1, round(width / aspect[0])))
    w = min(width, max(1, round(height * aspect[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def view(picture: Image.Image, draw: Draw, size: int, threshold: int) -> np.ndarray:
    """One view: the pixels of a Draw.

    Args:
        picture: the whole image, RGB.
        draw: what to do with it.
        size: side of the view, pixels.
        threshold: of solarisation, 0..255.
    Returns: [size size 3] uint8.
    """
    out = resized_crop(picture, draw.box, size)
    if draw.flip:
        out = flipped(out)
    for step in draw.order:
        out = JITTER[step](out, draw.factors[step])
    if draw.gray:
        out = grayscale(out)
    if draw.sigma is not None:
        out = blurred(out, draw.sigma)
    return solarized(out, threshold) if draw.solarize else out


def resized_crop(
    picture: Image.Image, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
    """[size size 3] uint8: a box (top, left, height, width), antialiased bicubic."""
    top, left, height, width = box
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
    gray = _gray(image)[..., None].astype(np.float32)
    out = image - gray
    out *= np.float32(factor)
    out += gray
    return np.clip(out, 0, 255, out=out).astype(np.uint8)


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """[H W 3] uint8: hue turned by a share of the circle, in Pillow's 8-bit HSV."""
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(int(255 * shift) % 256)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def grayscale(image: np.ndarray) -> np.ndarray:
    """[H W 3] uint8: three equal channels of luma."""
    return cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """[H W 3] uint8: Gaussian blur, sigma in pixels, border pixels not repeated."""
    # cv2.GaussianBlur has coarser fixed-point weights: off by up to two levels.
    kernel = cv2.getGaussianKernel(KERNEL, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def solarized(image: np.ndarray, threshold: int) -> np.ndarray:
    """[H W 3] uint8: values at or above the threshold inverted."""
    values = np.arange(256)
    table = np.where(values < threshold, values, 255 - values).astype(np.uint8)
    return cv2.LUT(image, table)


JITTER = (brightness, contrast, saturation, hue)  # numbered as in Draw.order


def _gray(image: np.ndarray) -> np.ndarray:
    """[H W] uint8 luma with Pillow's rounding, which OpenCV's differs from."""
    return np.asarray(Image.fromarray(image).convert("L"))


def _toward(image: np.ndarray, base: int, factor: float) -> np.ndarray:
    """Blend with a constant: float32, clipped, then cut to uint8 as Pillow does."""
    values = np.arange(256, dtype=np.float32) - base
    table = np.clip(values * np.float32(factor) + base, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
