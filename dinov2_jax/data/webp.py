"""The size that the header of a WebP file declares."""


def size(data: bytes) -> tuple[int, int] | None:
    """(height, width) by the first chunk: extended, lossless or lossy; None of others.

    Pillow's reader allocates the pixels when it opens a file, before its size can be
    asked for.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        numbers = data[27:30], data[24:27]
        height, width = (int.from_bytes(x, "little") + 1 for x in numbers)
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        height, width = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    else:
        numbers = data[28:30], data[26:28]
        height, width = (int.from_bytes(x, "little") & 0x3FFF for x in numbers)
    return height, width
