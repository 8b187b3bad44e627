"""Sound pixels beside damaged metadata are read, corrupt ones follow the setting."""

import io
import struct
import zlib

import numpy as np
import pytest
import rasters
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.data import decode, rules, sources

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (120, 160, 3), np.uint8)
MEGABYTE = b"a" * 2**20
FILL, SKIP = rules.of(), rules.of(damaged="skip")


def profile(body):
    return rasters.chunk(b"iCCP", b"name\0\0" + zlib.compress(body))


CHUNKS = {
    "a long text": rasters.chunk(b"tEXt", b"k\0" + 2 * MEGABYTE),
    "a long compressed text": rasters.chunk(
        b"zTXt", b"k\0\0" + zlib.compress(2 * MEGABYTE)
    ),
    "a long text of any language": rasters.chunk(
        b"iTXt", b"k\0\1\0\0\0" + zlib.compress(2 * MEGABYTE)
    ),
    "many texts": 70 * rasters.chunk(b"zTXt", b"k\0\0" + zlib.compress(MEGABYTE[:-9])),
    "a wrong sum of a text": rasters.chunk(b"tEXt", b"k\0v", damage=1),
    "a wrong sum of a time": rasters.chunk(b"tIME", bytes(7), damage=1),
    "a wrong sum of a transparency": rasters.chunk(b"tRNS", bytes(6), damage=1),
    "a short scale": rasters.chunk(b"pHYs", b"\0"),
    "a damaged profile": rasters.chunk(b"iCCP", b"name\0\0no zlib"),
    "a long profile": profile(70 * MEGABYTE),
    "an unknown chunk of a wrong sum": rasters.chunk(b"abCd", b"x", damage=1),
    "damaged EXIF": rasters.chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_is_read_whatever_its_metadata_are(kind, where, depth):
    pixels = IMAGE if depth == 8 else IMAGE.astype(np.uint16) * 257
    extra = (CHUNKS[kind],) if where == "before" else ()
    tail = CHUNKS[kind] if where == "behind" else b""
    data = rasters.png(pixels, 2, *extra, tail=tail)
    np.testing.assert_array_equal(decode.decode(data), IMAGE)
    assert decode.size_of(data) == IMAGE.shape[:2]


def test_such_pngs_are_packed(tmp_path):
    root, out = tmp_path / "images", tmp_path / "packed"
    root.mkdir()
    for kind, chunk in CHUNKS.items():
        (root / f"{kind}.png").write_bytes(rasters.png(IMAGE, 2, chunk))
    options = ("--longest=80", "--workers=1", "--max-skipped=0")
    assert command.main(["data", "pack", f"folder:{root}", str(out), *options]) == 0
    packed = sources.open_source(f"arrayrecord:{out}")
    shapes = {decode.decode(packed[i].image).shape for i in range(len(packed))}
    assert len(packed) == len(CHUNKS) and shapes == {(60, 80, 3)}


def test_a_short_transparency_is_metadata():
    data = rasters.png(IMAGE, 2, rasters.chunk(b"tRNS", b"\0"))
    np.testing.assert_array_equal(decode.decode(data), IMAGE)


def test_a_palette_keeps_its_colours_beside_damaged_metadata():
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).quantize(16).save(buffer, "PNG", transparency=3)
    data = buffer.getvalue()
    place = data.index(b"IDAT") - 4
    damaged = data[:place] + CHUNKS["a wrong sum of a text"] + data[place:]
    np.testing.assert_array_equal(decode.decode(damaged), decode.decode(data))


@pytest.mark.parametrize("kind", ["a long text", "a wrong sum of a text"])
def test_damaged_pixels_and_large_ones_stay_refused(kind):
    data = rasters.png(IMAGE, 2, CHUNKS[kind])
    with pytest.raises(decode.DecodeError, match="a PNG image that is damaged"):
        decode.decode(data[: len(data) // 2 * 1 + len(CHUNKS[kind]) // 2])
    with pytest.raises(decode.DecodeError, match="120 x 160"):
        decode.decode(data, max_pixels=120 * 160 - 1)
    header = data.index(b"IHDR")
    body = struct.pack(">II", 2**17, 2**15) + data[header + 12 : header + 17]
    large = data[: header - 4] + rasters.chunk(b"IHDR", body) + data[header + 21 :]
    with pytest.raises(decode.DecodeError, match="32768 x 131072"):
        decode.decode(large)


def jpeg(mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


SOUND = {
    "444": jpeg(subsampling=0),
    "420": jpeg(),
    "progressive": jpeg(progressive=True),
    "gray": jpeg("L"),
    "CMYK": jpeg("CMYK"),
    "RGB": jpeg(keep_rgb=True),
    "restarted": jpeg(restart_marker_blocks=8),
}


def zeros(data):
    return data[: len(data) * 2 // 3] + bytes(len(data) - len(data) * 2 // 3)


def ended(data):
    return zeros(data)[:-2] + b"\xff\xd9"


def hole(data):
    middle = len(data) // 2
    return data[:middle] + bytes(60) + data[middle + 60 :]


def cut(data):
    return data[: len(data) * 2 // 3] + b"\xff\xd9"


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_jpeg_is_the_same_under_either_rule(kind):
    data = SOUND[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for told in (FILL, SKIP):
        np.testing.assert_array_equal(decode.decode(data, rules=told), expected)
    # Encoders pad, servers append: nothing of the image is lost.
    for more in (data[:-2] + bytes(3) + b"\xff\xd9", data + b"more"):
        np.testing.assert_array_equal(decode.decode(more, rules=SKIP), expected)


@pytest.mark.parametrize("damage", [zeros, ended, hole, cut])
@pytest.mark.parametrize("kind", SOUND)
def test_a_corrupt_jpeg_is_filled_as_by_pillow_or_refused(kind, damage):
    data = damage(SOUND[kind])
    if (kind, damage) == ("CMYK", hole):
        pytest.skip("libjpeg falls into step again, and notices nothing")
    for longest in (None, 50):
        with pytest.raises(decode.DecodeError, match="a JPEG image whose data is corr"):
            decode.decode(data, longest=longest, rules=SKIP)
    try:
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except OSError:  # where a whole scan is missing
        with pytest.raises(decode.DecodeError, match="a JPEG image that is damaged"):
            decode.decode(data)
    else:
        np.testing.assert_array_equal(decode.decode(data), expected)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged tags
def test_a_deep_file_of_random_damage_gives_an_image_or_a_decode_error():
    words = IMAGE[..., 0].astype(np.uint16) << 8
    files = [
        rasters.tiff(words),
        rasters.tiff(IMAGE.astype(np.float32), ">", deflate=True),
        rasters.tiff(IMAGE.astype(np.uint16), photometric=1),
        rasters.png(words[..., None], 0),
        b"P5 160 120 999\n" + words.tobytes(),
        b"PF\n160 120\n1.0\n" + IMAGE.astype(">f4").tobytes(),
    ]
    refused, rng = 0, np.random.default_rng(0)
    for turn in range(600):
        data = bytearray(files[turn % len(files)])
        # Headers of these files lie at their beginning or their end.
        for place in (rng.integers(40), len(data) - 1 - rng.integers(200)):
            data[place] = rng.integers(256)
        try:
            told = rules.of("0,255") if turn % 2 else FILL
            image = decode.decode(bytes(data), max_pixels=10**6, rules=told)
            assert image.dtype == np.uint8 and image.shape[2] == 3
        except decode.DecodeError:
            refused += 1
    assert 0 < refused < 600
