"""Image files as arrays, with one kind of error for whatever is wrong with them."""

import contextlib
import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from PIL import Image, features

from dinov2_jax.data import deep, png, signatures, tiff, webp
from dinov2_jax.data.rules import DecodeError, Rules

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
# Damage is told by DecodeError; Pillow would warn of some of it as well.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

RULES = Rules()
"""Those of the reference: full range, and gray where a JPEG's data is corrupt."""


def decode(
    data: bytes | np.ndarray,
    *,
    max_pixels: int = MAX_PIXELS,
    longest: int | None = None,
    rules: Rules = RULES,
) -> np.ndarray:
    """The pixels of an encoded image.

    Args:
        data: an encoded image in any of FORMATS (its first frame); or [H W 3] uint8,
            which passes through.
        max_pixels: most H*W that the header may declare, checked before any
            allocation. It stands in the place of Pillow's own limits.
        longest: an image whose longer side is larger is shrunk to it; None shrinks
            none. A JPEG is then decoded at the next larger eighth of its size.
        rules: how samples of more than 8 bits become bytes, and what damaged JPEGs are.
    Returns: [H W 3] uint8 RGB. Alpha is dropped and EXIF rotation ignored, as by the
        reference's Image.open(...).convert("RGB").
    Raises: DecodeError if data is no whole image, or too large a one, or one of signed,
        floating point or 32-bit samples of which no range is stated.
    Differs: gray of more than 8 bits is scaled from its range to 8 bits; Pillow clips
        it, which leaves white, or black. PNGs with damaged metadata are read.
    """
    if isinstance(data, np.ndarray):
        return _shrunk(_checked(data, max_pixels), longest)
    image = _by_simplejpeg(data, max_pixels, longest, rules)
    if image is None:
        samples = _samples(data, max_pixels, rules.range is not None)
        deeper = isinstance(samples, deep.Samples)
        image = deep.bytes_of(samples, rules) if deeper else samples
    return _shrunk(image, longest)


def samples(data: bytes, *, max_pixels: int = MAX_PIXELS) -> deep.Samples | None:
    """The samples of an image of more than 8 bits; None of any other.

    Raises: DecodeError if it cannot be decoded.
    """
    if tiff.matches(data):
        deeper = tiff.header(data).deep
    elif png.matches(data):
        deeper = data[24:25] == b"\x10"
    else:
        deeper = data[:1] == b"P" or "JPEG2000" in _formats_of(data)
    found = _samples(data, max_pixels, True) if deeper else None
    return found if isinstance(found, deep.Samples) else None


def size_of(data: bytes, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) by the header of an image.

    Args:
        data: an encoded image in any of FORMATS.
        max_pixels: as `decode`; None for any number.
    Raises: DecodeError if it is none, or too large a one.
    """
    try:
        size = _declared(data)
    # Pillow's readers raise nearly every kind of error on damaged bytes.
    except Exception as error:
        if isinstance(error, DecodeError):
            raise
        raise _refusal(data) from error
    if max_pixels is not None:
        _limit(*size, max_pixels)
    return size


def _declared(data: bytes) -> tuple[int, int]:
    """`size_of`, with Pillow's own errors."""
    try:
        return simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError:
        pass
    if tiff.matches(data):
        header = tiff.header(data)
        return header.height, header.width
    if size := png.size(data) or deep.pfm_size(data) or webp.size(data):
        return size
    picture = _opened(data)
    if picture is None:
        raise _refusal(data)
    return picture.height, picture.width


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
    data: bytes, max_pixels: int, longest: int | None, rules: Rules
) -> np.ndarray | None:
    """[H W 3] uint8 of a sound YCbCr or gray JPEG, not yet all shrunk, else None.

    Bit for bit what Pillow decodes, in less than half of the time.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _limit(height, width, max_pixels)
    ours = space in ("YCbCr", "Gray")
    if not ours and rules.damaged == "fill":
        return None
    size = fitted(height, width, longest)
    least = size if size != (height, width) else (0, 0)
    try:
        image = simplejpeg.decode_jpeg(
            data,
            "CMYK" if space in ("CMYK", "YCCK") else "RGB",
            min_height=least[0],
            min_width=least[1],
        )
        return image if ours else None
    except ValueError as error:
        if rules.damaged == "skip" and not _harmless(str(error)):
            raise DecodeError(
                f"these {len(data)} bytes are a JPEG image whose data is corrupt or cut "
                f"off ({str(error).removeprefix('Corrupt JPEG data: ')})"
            ) from error
        return None  # damaged: Pillow decides how badly


def _harmless(warning: str) -> bool:
    """Whether libjpeg warns of no more than a few bytes behind a whole image."""
    match = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    return match is not None and int(match[1]) <= 16


def _samples(
    data: bytes, max_pixels: int, all_depths: bool
) -> np.ndarray | deep.Samples:
    """[H W 3] uint8 of an image in any of FORMATS, or its samples if they are deeper."""
    try:
        return _read(data, max_pixels, all_depths)
    # Pillow's readers raise nearly every kind of error on damaged bytes.
    except Exception as error:
        plain = png.without_metadata(data) if png.matches(data) else data
        if plain != data and getattr(error, "reason", "") != "too large":
            return _samples(plain, max_pixels, all_depths)
        if isinstance(error, DecodeError):
            raise
        raise _refusal(data) from error


def _read(data: bytes, max_pixels: int, all_depths: bool) -> np.ndarray | deep.Samples:
    """As `_samples`, with Pillow's own errors."""
    header = tiff.header(data) if tiff.matches(data) else None
    if header:
        size, data = (header.height, header.width), tiff.as_colour(data, header)
    else:
        size = deep.pfm_size(data) or webp.size(data)
    if size:
        _limit(*size, max_pixels)
    if deep.pfm_size(data):
        return deep.of_pnm(data, all_depths)
    unknown = tiff.refusal(header) if header else ""
    deeper = header is not None and header.deep
    with _unlimited(size):
        # Pillow reads some bands of 8 bits, and logs it where they are more than 6.
        several = header is not None and (header.planes or header.samples > 6)
        certain = unknown and (deeper or several)
        picture = None if certain else _opened(data)
        if unknown and picture is None:
            raise DecodeError(f"these {len(data)} bytes are {unknown}.", "unsupported")
        if picture is not None:
            _limit(picture.height, picture.width, max_pixels)
        if deeper:
            return deep.of_tiff(data, header, picture)
        if picture is None:
            raise _refusal(data)
        found = None if header else deep.of_other(data, picture, all_depths)
        return np.array(picture.convert("RGB")) if found is None else found


_LIFTED = threading.Lock()


@contextlib.contextmanager
def _unlimited(size: tuple[int, int] | None) -> Iterator[None]:
    """Lifts Pillow's limit of pixels, the process's, for an image that ours let pass.

    Pillow's readers of some formats ask for it again, after `_opened`.
    """
    limit = min(Image.MAX_IMAGE_PIXELS or MAX_PIXELS, MAX_PIXELS)
    if size is None or size[0] * size[1] <= limit:
        yield
        return
    with _LIFTED:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _opened(data: bytes) -> Image.Image | None:
    """A picture of one of FORMATS whose header was read, or None.

    As Image.open, but for Pillow's limit of pixels; ours is checked before pixels are
    decoded.
    """
    for name in _formats_of(data):
        try:
            return Image.OPEN[name][0](io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    return None


def _formats_of(data: bytes) -> list[str]:
    """Those of FORMATS as which bytes begin."""
    accepts = {name: Image.OPEN[name][1] for name in FORMATS}
    return [name for name, accept in accepts.items() if accept(data[:16]) is True]


def _refusal(data: bytes) -> DecodeError:
    """What to say of bytes that Pillow does not decode."""
    start, formats = f"these {len(data)} bytes are", _formats_of(data)
    if formats == ["JPEG"] and (rare := signatures.rare_jpeg(data)):
        return DecodeError(f"{start} {rare}.", "unsupported")
    # Files of HEIC and AVIF may begin alike.
    if formats and (formats[0] != "AVIF" or b"avi" in data[8:64]):
        article = "an" if formats[0] == "AVIF" else "a"
        return DecodeError(
            f"{start} {article} {formats[0]} image that is damaged or cut off"
        )
    what = signatures.what(data) or f"no image of {', '.join(FORMATS)}"
    return DecodeError(f"{start} {what}", "no image")


def _limit(height: int, width: int, max_pixels: int) -> None:
    """Raises DecodeError for an image of more than `max_pixels`, or of none."""
    if not height * width:
        raise DecodeError(
            f"the image is of {height} x {width} pixels, or its header is damaged."
        )
    if height * width > max_pixels:
        raise DecodeError(
            f"the image is {height} x {width} = {height * width} pixels; 1 to "
            f"{max_pixels=} are allowed.",
            "too large",
        )


def _checked(array: np.ndarray, max_pixels: int) -> np.ndarray:
    """The array itself, if it is an image of an allowed size."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DecodeError(
            f"an image array must be [H W 3] uint8, not {array.shape} {array.dtype}."
        )
    _limit(*array.shape[:2], max_pixels)
    return array
