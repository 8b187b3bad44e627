"""Images of samples deeper than 8 bits: their values, and how these become bytes."""

import re
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dinov2_jax.data import tiff
from dinov2_jax.data.rules import DecodeError, Rules

# Damage is told by DecodeError; OpenCV would write half a dozen lines a file as well.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Samples(NamedTuple):
    """An image in the units of its file."""

    values: np.ndarray  # [H W] or [H W 3] of any kind of number
    kind: str  # such as `16-bit gray PNG`
    declared: tuple[float, float] | None  # range by the file itself
    inverted: bool = False  # whether the lowest value is white


def of_tiff(data: bytes, found: tiff.Header, picture: Image.Image | None) -> Samples:
    """The samples of a deep TIFF.

    Args:
        data: the file, `tiff.as_colour`.
        found: its header, of which `tiff.refusal` has no word to say.
        picture: the same, opened by Pillow; None if it does not know the kind.
    Raises: DecodeError if it is damaged.
    """
    values = None
    if found.photometric != tiff.CMYK:
        values = _by_opencv(data)
    if values is not None and found.bits in (10, 12, 14):
        values = values >> 16 - found.bits  # OpenCV fills up to 16 bits
    if values is None and picture is not None:
        # Kinds of compression that OpenCV was built without, and CMYK.
        values = np.asarray(picture)
        if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
            values = np.asarray(picture.convert("RGB")).astype(np.uint16) * 257
    if values is None:
        raise DecodeError(
            f"these {len(data)} bytes are a {found.kind} that is damaged or cut off, "
            "or compressed in a way that is not decoded here."
        )
    if found.format not in (tiff.SIGNED, tiff.FLOAT) and values.dtype == np.int32:
        values = values.view(np.uint32)  # older readers know no other
    declared = found.range
    if declared is None and found.format not in (tiff.SIGNED, tiff.FLOAT):
        declared = (0, 2**found.bits - 1) if found.bits <= 16 else None
    return Samples(values, found.kind, declared, found.photometric == tiff.WHITE)


def of_other(data: bytes, picture: Image.Image, all_depths: bool) -> Samples | None:
    """The samples of a deep PNG, PNM, PFM or JPEG 2000; None of any other image.

    Args:
        data: the file.
        picture: the same, opened by Pillow.
        all_depths: whether colours are told, too, that Pillow cuts to 8 bits.
    Raises: DecodeError if it is damaged.
    """
    name = picture.format
    if name == "PPM":
        return of_pnm(data, all_depths)
    bits = _precision(data, name)
    if picture.mode.startswith("I"):
        values = np.asarray(picture) >> 16 - bits  # Pillow fills up to 16 bits
    elif all_depths and bits > 8:
        values = _by_opencv(data)
    else:
        return None
    if values is None:
        raise DecodeError(
            f"these {len(data)} bytes are a {name} image that is damaged or cut off"
        )
    if name == "PNG" and data[25] == 4:  # gray and alpha, of which OpenCV makes colours
        values = values[..., 0]
    colours = "gray" if values.ndim == 2 else "colour"
    return Samples(values, f"{bits}-bit {colours} {name}", (0, 2**bits - 1))


def bytes_of(samples: Samples, rules: Rules) -> np.ndarray:
    """[H W 3] uint8: the stated range from 0 to 255, what lies beyond it clipped.

    Raises: DecodeError if neither the rules nor the file state a range.
    """
    span = rules.range or samples.declared
    if span is None:
        raise DecodeError(
            f"this {samples.kind} declares no range of its samples, which run from "
            f"{shown(measured(samples))} here; set data.range=LOW,HIGH (--range of a "
            "command), the values that become black and white. `dinov2-jax data stats` "
            "measures them over a source.",
            "no data.range",
        )
    values = samples.values.astype(samples.values.dtype.newbyteorder("="), copy=False)
    size = values.dtype.itemsize
    if values.dtype.kind in "ui" and size <= 2:
        # Of each value that there can be, once: faster than of each pixel.
        numbers = np.arange(256**size).astype(f"u{size}")
        out = _scaled(numbers.view(values.dtype), span)[values.view(numbers.dtype)]
    else:
        out = _scaled(values, span)
    out = 255 - out if samples.inverted else out
    return np.repeat(out[..., None], 3, axis=2) if out.ndim == 2 else out


def measured(samples: Samples) -> tuple[float, float]:
    """The smallest and the largest finite value; 0 and 0 if there is none."""
    finite = samples.values[np.isfinite(samples.values)]
    if not finite.size:
        return 0.0, 0.0
    return finite.min().item(), finite.max().item()


def shown(span: tuple[float, float]) -> str:
    """Such as `0 to 4095`."""
    return " to ".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in span)


def _scaled(values: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """uint8: low 0, high 255, rounded; 0 where there is no number."""
    low, high = span
    if span == (0, 65535):
        # The high byte, as Pillow takes it of colours of 16 bits.
        return (_within(values, *span).astype(np.uint16) >> 8).astype(np.uint8)
    kind = np.float32 if values.dtype == np.float32 else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        part = (values.astype(kind) - kind(low)) * kind(255 / (high - low))
    return np.rint(_within(part, 0, 255)).astype(np.uint8)


def _within(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values clipped to a range; 0 where there is no number."""
    return np.clip(np.nan_to_num(values), low, high)


def _by_opencv(data: bytes) -> np.ndarray | None:
    """[H W] or [H W 3] RGB values as they lie in the file, or None."""
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if found is None or found.ndim == 2:
        return found
    return np.ascontiguousarray(found[..., 2::-1])


_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(
    rb"P([2356fF])%b(\d{1,9})%b(\d{1,9})%b([-+.eE\d]{1,20})\s" % (_GAP, _GAP, _GAP)
)


def pfm_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a PFM of colours, which Pillow does not know; else None."""
    match = _PNM.match(data) if data.startswith(b"PF") else None
    return match and (int(match[3]), int(match[2]))


def of_pnm(data: bytes, all_depths: bool) -> Samples | None:
    """The samples of a PNM of more than 8 bits or a PFM, else None."""
    match = _PNM.match(data)
    if match is None:
        return None
    kind, width, height, most = match.groups()
    shape = (int(height), int(width), 3)[: 3 if kind in b"36F" else 2]
    what, size = ("colour" if len(shape) == 3 else "gray"), int(np.prod(shape))
    body = data[match.end() :]
    try:
        if kind in b"fF":
            order = "<f4" if most.startswith(b"-") else ">f4"
            values = np.frombuffer(body, order, size).reshape(shape)[::-1]
            return Samples(values.astype(np.float32), f"float {what} PFM", None)
        top = int(most)
        if top < 256 or (what == "colour" and not all_depths):
            return None
        if kind in b"56":
            values = np.frombuffer(body, ">u2", size).astype(np.uint16)
        else:
            values = np.array(body.split()[:size], np.uint16)
        values = values.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise DecodeError(
            f"these {len(data)} bytes are a PNM image that is damaged or cut off"
        ) from error
    return Samples(values, f"{top.bit_length()}-bit {what} PNM", (0, top))


def _precision(data: bytes, name: str) -> int:
    """Bits of a sample of a PNG, by its header, or of a JPEG 2000, by its SIZ marker."""
    if name == "PNG":
        return data[24]
    place = data.find(b"\xff\x51") if name == "JPEG2000" else -1
    return (data[place + 40] & 127) + 1 if 0 <= place < len(data) - 40 else 8
