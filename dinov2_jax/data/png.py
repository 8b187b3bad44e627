"""PNG files whose metadata keep Pillow from reading their pixels."""

import struct
from collections.abc import Iterator

_START = b"\x89PNG\r\n\x1a\n"


def matches(data: bytes) -> bool:
    """Whether bytes begin as a PNG file does."""
    return data.startswith(_START)


def size(data: bytes) -> tuple[int, int] | None:
    """(height, width) by the header of a PNG, which may be damaged behind it; or None."""
    if not matches(data) or len(data) < 24:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def without_metadata(data: bytes) -> bytes:
    """A PNG of nothing but the chunks that its pixels depend on.

    Texts, profiles and times may be longer than Pillow reads, or have a wrong sum.
    """
    return _START + b"".join(_pixel_chunks(data))


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """The critical chunks of a PNG; transparency is dropped with alpha."""
    start = len(_START)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        if data[start + 4 : start + 8] in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            yield data[start:end]
        start = end
