"""What the header of a TIFF file declares, and which TIFF files are no photograph."""

import dataclasses
import struct
from collections.abc import Iterator

from dinov2_jax.data.rules import DecodeError

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE, BLACK, RGB, CMYK = 0, 1, 2, 5
_COLOURS = {RGB: 3, CMYK: 4, 6: 3, 8: 3, 9: 3, 10: 3}  # photometric -> samples; else 1
# Kind of a tag's numbers -> struct's letter; 13 and 18 are places of other images.
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I"}
_TYPES |= {16: "Q", 18: "Q"}
# Tag -> its value where the file has none.
_TAGS = {
    "subfile": (254, (0,)),
    "width": (256, (0,)),
    "height": (257, (0,)),
    "bits": (258, (1,)),
    "photometric": (262, (BLACK,)),
    "samples": (277, (1,)),
    "low": (280, ()),
    "high": (281, ()),
    "planes": (284, (1,)),
    "subfiles": (330, ()),
    "extra": (338, ()),
    "format": (339, (UNSIGNED,)),
    "signed_low": (340, ()),
    "signed_high": (341, ()),
    "dng": (50706, ()),
}
_RAW = "a camera's raw file (such as DNG, NEF, CR2 or ARW); convert it to JPEG or PNG"


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first image of a file declares.

    Fields: `height`, `width`; `samples` of a pixel, `alpha` those beyond its colours;
    `bits` of a sample; `format` UNSIGNED, SIGNED or FLOAT; `photometric`; whether its
    samples lie in separate `planes`; the `range` of its samples, where it is declared;
    `places` in the file of the tags photometric and extra samples, 0 for none, whose
    bytes are in the order `order`.
    """

    height: int
    width: int
    samples: int
    alpha: int
    bits: int
    format: int
    photometric: int
    planes: bool
    range: tuple[float, float] | None
    places: tuple[int, int]
    order: str

    @property
    def deep(self) -> bool:
        """Whether a sample is anything but an unsigned number of up to 8 bits."""
        return self.bits > 8 or self.format in (SIGNED, FLOAT)

    @property
    def kind(self) -> str:
        """Such as `16-bit gray TIFF`."""
        numbers = {SIGNED: "signed ", FLOAT: "float "}.get(self.format, "")
        colours = "gray" if self.samples - self.alpha == 1 else "colour"
        return f"{self.bits}-bit {numbers}{colours} TIFF"


def matches(data: bytes) -> bool:
    """Whether bytes begin as a TIFF file of 32-bit or 64-bit offsets does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def header(data: bytes) -> Header:
    """The header of a TIFF file.

    Raises: DecodeError if it is damaged, or a camera's raw file.
    """
    try:
        order = "<" if data[:2] == b"II" else ">"
        # The first of equal tags counts, as for libtiff.
        found = dict(reversed(list(_entries(data, order))))
    except struct.error as error:
        raise DecodeError(
            f"these {len(data)} bytes are a TIFF image that is cut off"
        ) from error
    tags = {n: found.get(tag, (missing, 0)) for n, (tag, missing) in _TAGS.items()}
    one = {name: values[0] if values else None for name, (values, _) in tags.items()}
    thumbnail = one["subfile"] & 1 and tags["subfiles"][0]
    sensor = one["dng"] is not None or one["photometric"] in (32803, 34892)
    if sensor or thumbnail or data[8:12] == b"CR\2\0":
        raise DecodeError(f"these {len(data)} bytes are {_RAW}.", "unsupported")
    samples, colours = one["samples"], _COLOURS.get(one["photometric"], 1)
    # Three bands of "gray" are a colour image of a writer that knows no colours.
    place = tags["photometric"][1]
    bands = one["photometric"] == BLACK and samples == 3 and place
    if bands and not any(tags["extra"][0]):
        colours = 3
    return Header(
        height=one["height"],
        width=one["width"],
        samples=samples,
        alpha=samples - colours,
        bits=max(tags["bits"][0]),
        format=one["format"],
        photometric=one["photometric"],
        planes=one["planes"] == 2 and samples > 1,
        range=_declared(one),
        places=(place, tags["extra"][1]),
        order=order,
    )


def as_colour(data: bytes, found: Header) -> bytes:
    """The file with three bands of gray declared as red, green and blue."""
    if found.photometric != BLACK or found.samples - found.alpha != 3:
        return data
    out = bytearray(data)
    photometric, extra = found.places
    value = photometric + (12 if b"+" in data[2:4] else 8)
    struct.pack_into(f"{found.order}H", out, value, RGB)
    if extra:  # becomes a tag that says nothing of pixels, with its place in the order
        struct.pack_into(f"{found.order}H", out, extra, 337)
    return bytes(out)


def _declared(one: dict) -> tuple[float, float] | None:
    """The range of the samples by MaxSampleValue or SMinSampleValue, SMaxSampleValue."""
    low, high = one["signed_low"], one["signed_high"]
    if low is None or high is None:
        low, high = one["low"] or 0, one["high"]
    return (low, high) if high is not None and low < high else None


def refusal(found: Header) -> str:
    """What a TIFF holds that is no photograph, or that no reader here knows; or ""."""
    colours = found.samples - found.alpha
    # Pillow passes over so many, of 8 bits.
    most = 3 if found.photometric == RGB and not found.deep else 1
    if colours not in (1, 3, 4) or not 0 <= found.alpha <= most:
        return (
            f"a TIFF of {found.samples} bands; images need 1 or 3 (4 with alpha). "
            "Choose three, for instance by gdal_translate -b 4 -b 3 -b 2"
        )
    if found.planes and (found.deep or found.samples == 2):
        return (
            f"a TIFF of {found.samples} separate planes of {found.bits} bits, which "
            "are not decoded; write it pixel by pixel, for instance by gdal_translate "
            "-co INTERLEAVE=PIXEL"
        )
    if not found.deep:
        return ""
    known = {SIGNED: (8, 16, 32), FLOAT: (32, 64)}
    names = {SIGNED: "signed ", FLOAT: "float ", 5: "complex ", 6: "complex "}
    if found.bits not in known.get(
        found.format, () if found.format in names else (10, 12, 14, 16, 32)
    ):
        return (
            f"a TIFF of {names.get(found.format, '')}samples of {found.bits} bits, "
            "which are not decoded; write it with unsigned samples of 16 bits or float "
            "samples of 32"
        )
    if found.photometric not in (WHITE, BLACK, RGB, CMYK) or found.samples == 2:
        return (
            f"a TIFF of {found.samples} samples of {found.bits} bits of photometric "
            f"{found.photometric}, which is not decoded; write it as gray or RGB"
        )
    return ""


def _entries(data: bytes, order: str) -> Iterator[tuple[int, tuple[tuple, int]]]:
    """(tag, (its numbers, its place)) of the first image, of tags of numbers."""
    wanted = {tag for tag, _ in _TAGS.values()}
    big = b"+" in data[2:4]
    long, short, size, room = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    (start,) = struct.unpack_from(order + long, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + short, data, start)
    start += struct.calcsize(short)
    for entry in range(start, start + min(count, 4096) * size, size):
        tag, kind, number = struct.unpack_from(f"{order}HH{long}", data, entry)
        if tag not in wanted or kind not in _TYPES or not number:
            continue
        # No tag of interest has more numbers than an image of bands has samples.
        letters = f"{order}{min(number, 4096)}{_TYPES[kind]}"
        place = entry + 4 + struct.calcsize(long)
        if number * struct.calcsize(_TYPES[kind]) > room:
            (place,) = struct.unpack_from(order + long, data, place)
        if place + struct.calcsize(letters) <= len(data):
            yield tag, (struct.unpack_from(letters, data, place), entry)
