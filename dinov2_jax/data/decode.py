"""Image files as arrays, with one kind of error for whatever is wrong with them."""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

from dinov2_jax import errors

MAX_PIXELS = 89_478_485  # Pillow's own threshold of suspicion: a quarter GB of RGB

# Only formats that Pillow decodes itself: EPS, for one, would start Ghostscript.
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
if features.check("avif"):
    _ENDINGS["AVIF"] = (".avif",)
if features.check("jpg_2000"):
    _ENDINGS["JPEG2000"] = (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")
FORMATS = tuple(_ENDINGS)
EXTENSIONS = tuple(ending for endings in _ENDINGS.values() for ending in endings)
"""In lower case, of the files that can be decoded here."""
Image.init()  # registers them; Image.open(formats=...) fails on what is not registered


class DecodeError(errors.InputError):
    """An image that cannot be decoded, or that is larger than allowed."""


def decode(
    data: bytes | np.ndarray,
    *,
    max_pixels: int = MAX_PIXELS,
    longest: int | None = None,
) -> np.ndarray:
    """The pixels of an encoded image.

    Args:
        data: an encoded image in any of FORMATS (its first frame); or
            [H W 3] uint8, which passes through.
        max_pixels: most H*W that the header may declare, checked before any
            allocation. Pillow's own limit of 178,956,970 holds besides.
        longest: an image whose longer side is larger is shrunk to it; None shrinks
            none. A JPEG is then decoded at the next larger eighth of its size.
    Returns: [H W 3] uint8 RGB. Alpha is dropped and EXIF rotation ignored, as by the
        reference's Image.open(...).convert("RGB").
    Raises: DecodeError if data is no whole image, or too large a one.
    Differs: 16-bit gray is scaled to 8 bits; Pillow clips it, which leaves white.
    """
    if isinstance(data, np.ndarray):
        return _shrunk(_checked(data, max_pixels), longest)
    image = _by_simplejpeg(data, max_pixels, longest)
    if image is None:
        image = _by_pillow(data, max_pixels)
    return _shrunk(image, longest)


def fitted(height: int, width: int, longest: int | None) -> tuple[int, int]:
    """Height and width, at most `longest` and at least 1, of one aspect."""
    side = max(height, width)
    if longest is None or side <= longest:
        return height, width
    return tuple(max(1, round(x * longest / side)) for x in (height, width))


def _shrunk(image: np.ndarray, longest: int | None) -> np.ndarray:
    """[H W 3] uint8: the image in its `fitted` size, by the mean over areas."""
    size = fitted(*image.shape[:2], longest)
    if size == image.shape[:2]:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def _by_simplejpeg(
    data: bytes, max_pixels: int, longest: int | None
) -> np.ndarray | None:
    """[H W 3] uint8 of a sound YCbCr or gray JPEG, not yet all shrunk, else None.

    Bit for bit what Pillow decodes, in less than half of the time.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _limit(height, width, max_pixels)
    if space not in ("YCbCr", "Gray"):
        return None
    try:
        size = fitted(height, width, longest)
        if size == (height, width):
            return simplejpeg.decode_jpeg(data, "RGB")
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=size[0], min_width=size[1]
        )
    except ValueError:
        return None  # damaged: Pillow decides how badly


def _by_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    """[H W 3] uint8 of an encoded image in any of FORMATS."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _limit(picture.height, picture.width, max_pixels)
            if picture.mode.startswith("I;16"):
                gray = np.asarray(picture).astype(np.uint16) >> 8
                return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
            return np.array(picture.convert("RGB"))
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(
            f"these {len(data)} bytes are no image of {', '.join(FORMATS)}"
        ) from error
    # Pillow's readers raise nearly every kind of error on damaged bytes.
    except Exception as error:
        raise DecodeError(
            f"no image can be decoded from these {len(data)} bytes: {error}"
        ) from error


def _limit(height: int, width: int, max_pixels: int) -> None:
    """Raises DecodeError for an image of more than `max_pixels`, or of none."""
    if not 0 < height * width <= max_pixels:
        raise DecodeError(
            f"the image is {height} x {width} = {height * width} pixels; 1 to "
            f"{max_pixels=} are allowed."
        )


def _checked(array: np.ndarray, max_pixels: int) -> np.ndarray:
    """The array itself, if it is an image of an allowed size."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DecodeError(
            f"an image array must be [H W 3] uint8, not {array.shape} {array.dtype}."
        )
    _limit(*array.shape[:2], max_pixels)
    return array
