"""Maps from their files: one number a pixel, exactly as it was written."""

import io
import pathlib

import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.escaping import escaped

LOSSLESS = (".png", ".npy", ".tif", ".tiff", ".bmp", ".webp")
"""Endings of files that keep every number."""

REFUSED = {
    ending: reason
    for endings, reason in (
        (".jpg .jpeg .jfif .jpe .jp2", "is of a lossy format, which changes ids"),
        (
            ".gif .ppm .pgm .tga .heic .avif .exr .pfm .mat .npz .h5 .json .xml",
            "is of a format that is not read as a map",
        ),
    )
    for ending in endings.split()
}
"""Ending of a file that often holds a map -> why it is not read."""

_FORMATS = ("PNG", "TIFF", "BMP", "WEBP", "JPEG", "JPEG2000", "GIF", "PPM")
_PLAIN = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_STEP = {1: 255, 2: 85, 4: 17}  # Pillow spreads grey of few bits over 0..255
_LOSSY_TIFF = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 50001: "WebP"}
_BITS, _COMPRESSION = 258, 259  # tags of TIFF


def load(path: str, what: str) -> np.ndarray:
    """The numbers of a map.

    Args:
        path: a .npy file, or a picture of one channel (grey of any depth, palette
            indices, floating point) as PNG, TIFF, BMP or lossless WebP; a picture of
            colours counts where its three channels are equal. What it holds decides,
            not its ending.
        what: for messages, such as "a label map".
    Returns: [H W] integers or floating point.
    Raises: ValueError that names the file and what is wrong with it.
    """
    name = escaped(path)
    try:
        if path.lower().endswith(".npy"):
            # np.load takes other bytes for a pickle, and advises to run it.
            with open(path, "rb") as file:
                found = np.lib.format.read_array(file, allow_pickle=False)
        else:
            found = _picture(pathlib.Path(path).read_bytes(), name, what)
        if found.ndim != 2 or found.dtype.kind not in "biuf":
            raise errors.InputError(
                f"{name} holds {found.shape} {found.dtype}; {what} is [H W] numbers."
            )
    except errors.InputError:
        raise
    # Readers raise nearly every kind of error on damaged files.
    except Exception as error:
        raise errors.InputError(f"{name} cannot be read as {what}: {error}") from error
    return found.astype(np.uint8) if found.dtype == bool else found


def _picture(data: bytes, name: str, what: str) -> np.ndarray:
    """[H W] of an encoded picture."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
        lossy = _lossy(picture, data)
        if lossy:
            raise errors.InputError(
                f"{name} is {lossy}, which does not keep the numbers of {what}; write "
                "it as PNG, TIFF or .npy, from its source."
            )
        if picture.format in ("GIF", "PPM") or getattr(picture, "n_frames", 1) > 1:
            raise errors.InputError(
                f"{name} is {picture.format} of {getattr(picture, 'n_frames', 1)} "
                f"pictures; {what} is one PNG, TIFF, BMP, lossless WebP or .npy."
            )
        bits, mode, found = _bits(picture, data), picture.mode, np.asarray(picture)
    if mode in _PLAIN:
        return found // _STEP[bits] if mode == "L" and bits in _STEP else found
    if mode not in ("LA", "RGB", "RGBA") or bits == 16:
        raise errors.InputError(
            f"{name} is a picture of mode {mode} and {bits} bits; {what} has one "
            "channel: write the numbers as grey or as .npy."
        )
    return _one_channel(found, mode, name, what)


def _one_channel(found: np.ndarray, mode: str, name: str, what: str) -> np.ndarray:
    """[H W] of [H W C] whose colours are all grey and opaque."""
    if mode.endswith("A"):
        if (found[..., -1] != 255).any():
            raise errors.InputError(
                f"{name} is a picture of mode {mode} with transparent pixels; {what} "
                "has one channel: write the numbers as grey."
            )
        found = found[..., :-1]
    if (found != found[..., :1]).any():
        colored = found[(found != found[..., :1]).any(-1)]
        colors = ", ".join(
            str(tuple(map(int, c))) for c in np.unique(colored, axis=0)[:3]
        )
        raise errors.InputError(
            f"{name} is a picture of mode RGB; {what} has one number a pixel, not "
            f"colours such as {colors}: write a number for each colour, as grey, as a "
            "palette or as .npy."
        )
    return found[..., 0]


def _bits(picture: Image.Image, data: bytes) -> int:
    """Bits of a channel, as the header says."""
    if picture.format == "PNG":
        return data[24]  # IHDR comes first, by the standard
    if picture.format == "TIFF":
        return int(np.ravel(picture.tag_v2.get(_BITS, 1))[0])
    return 8


def _lossy(picture: Image.Image, data: bytes) -> str:
    """The compression that changes numbers, or ""."""
    if picture.format in ("JPEG", "JPEG2000"):
        return picture.format
    if picture.format == "TIFF":
        kind = _LOSSY_TIFF.get(picture.tag_v2.get(_COMPRESSION, 1))
        return f"a TIFF of {kind}" if kind else ""
    if picture.format == "WEBP" and b"VP8L" not in _webp_chunks(data):
        return "lossy WebP"
    return ""


def _webp_chunks(data: bytes) -> list[bytes]:
    """Names of the chunks of a WebP file."""
    found, at = [], 12
    while at + 8 <= len(data):
        found.append(data[at : at + 4])
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return found
