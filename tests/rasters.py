"""Image files of any depth and kind of sample, written byte by byte."""

import struct
import zlib

import numpy as np

KINDS = {"u": 1, "i": 2, "f": 3, "c": 6}  # NumPy's kind -> TIFF's SampleFormat


def tiff(
    values: np.ndarray,
    order: str = "<",
    *,
    photometric: int | None = None,
    bits: int | None = None,
    planar: bool = False,
    deflate: bool = False,
    tags: dict[int, tuple[str, tuple]] | None = None,
) -> bytes:
    """A TIFF of one strip, or of one a plane.

    Args:
        values: [H W] or [H W samples].
        order: of bytes.
        photometric: 0 white is zero, 1 black is zero, 2 RGB; RGB of three samples.
        bits: of a sample, packed; else those of the dtype.
        planar: samples in planes of their own.
        deflate: compressed.
        tags: further ones, number -> (letter of struct, values).
    """
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    if photometric is None:
        photometric = 2 if samples in (3, 4) else 1
    planes = np.moveaxis(values, 2, 0) if planar else [values]
    strips = [packed(x, bits) if bits else ordered(x, order) for x in planes]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    size = bits or values.dtype.itemsize * 8
    entries = {
        256: ("H", (width,)),
        257: ("H", (height,)),
        258: ("H", (size,) * samples),
        259: ("H", (8 if deflate else 1,)),
        262: ("H", (photometric,)),
        273: ("I", (0,) * len(strips)),
        277: ("H", (samples,)),
        278: ("H", (height,)),
        279: ("I", tuple(map(len, strips))),
        284: ("H", (2 if planar else 1,)),
        339: ("H", (KINDS[values.dtype.kind],) * samples),
        **(tags or {}),
    }
    start = 8 + sum(map(len, strips))
    places = 8 + np.cumsum([0, *map(len, strips[:-1])])
    entries[273] = ("I", tuple(places.tolist()))
    letters = {"B": 1, "H": 3, "I": 4, "h": 8, "i": 9, "f": 11, "d": 12}
    directory, beyond = struct.pack(f"{order}H", len(entries)), b""
    behind = start + 2 + 12 * len(entries) + 4
    for tag, (letter, numbers) in sorted(entries.items()):
        value = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(value) > 4:
            place = struct.pack(f"{order}I", behind + len(beyond))
            beyond, value = beyond + value, place
        head = struct.pack(f"{order}HHI", tag, letters[letter], len(numbers))
        directory += head + value.ljust(4, b"\0")
    mark = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start)
    return mark + b"".join(strips) + directory + bytes(4) + beyond


def ordered(values: np.ndarray, order: str) -> bytes:
    """The bytes of an array in an order."""
    return (
        np.ascontiguousarray(values).astype(values.dtype.newbyteorder(order)).tobytes()
    )


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of so many bits a value, each row filled up to a byte."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits(values[..., None] >> places & 1, axis=None).tobytes()


def png(values: np.ndarray, colour: int, *extra: bytes, tail: bytes = b"") -> bytes:
    """A PNG of 8 or 16 bits.

    Args:
        values: [H W samples] unsigned.
        colour: 0 gray, 2 RGB, 4 gray and alpha, 6 RGB and alpha.
        extra: chunks before the pixels.
        tail: chunks behind the pixels.
    """
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + ordered(row, ">") for row in values)
    depth = values.dtype.itemsize * 8
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows)), tail]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    """A chunk of a PNG; its sum is wrong by `damage`."""
    crc = zlib.crc32(kind + body) ^ damage
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
