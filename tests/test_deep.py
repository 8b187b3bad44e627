"""Images of more than 8 bits, by the range that is declared or stated."""

import io
import re

import cv2
import numpy as np
import pytest
import rasters
from PIL import Image

from dinov2_jax.data import decode, rules

RNG = np.random.default_rng(0)
WORDS = RNG.integers(0, 2**16, (24, 32), dtype=np.uint16)
COLOURS = RNG.integers(0, 2**16, (24, 32, 3), dtype=np.uint16)
TWELVE, SIGNED = WORDS >> 4, (WORDS.astype(int) - 2**15)
PART = (WORDS / 65535).astype(np.float32)


def linear(values, low, high):
    """[H W 3]: low black, high white, in float64."""
    part = (np.asarray(values, np.float64) - low) * 255 / (high - low)
    out = np.rint(np.clip(part, 0, 255)).astype(np.uint8)
    return np.repeat(out[..., None], 3, 2) if out.ndim == 2 else out


def saved(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def pnm(kind, values, top):
    height, width = values.shape[:2]
    body = values.astype(">u2").tobytes()
    if kind in (b"P2", b"P3"):
        body = b" ".join(b"%d" % x for x in values.ravel())
    return b"%s\n# a comment\n%d %d\n%d\n%s" % (kind, width, height, top, body)


def pfm(kind, values):
    height, width = values.shape[:2]
    body = values[::-1].astype("<f4").tobytes()
    return b"%s\n%d %d\n-1.0\n%s" % (kind, width, height, body)


BANDS = {338: ("H", (0, 0))}
# Files and their samples, as many as there are between the two numbers.
DECLARED = {
    "tiff": (rasters.tiff(WORDS), WORDS, 0, 65535),
    "tiff of the other order": (rasters.tiff(WORDS, ">"), WORDS, 0, 65535),
    "tiff deflated": (rasters.tiff(WORDS, deflate=True), WORDS, 0, 65535),
    "tiff white": (rasters.tiff(WORDS, photometric=0), 65535 - WORDS, 0, 65535),
    "tiff white of the other order": (
        rasters.tiff(WORDS, ">", photometric=0),
        65535 - WORDS,
        0,
        65535,
    ),
    "tiff of 10 bits": (rasters.tiff(WORDS >> 6, bits=10), WORDS >> 6, 0, 1023),
    "tiff of 12 bits": (rasters.tiff(TWELVE, bits=12), TWELVE, 0, 4095),
    "tiff of 14 bits": (rasters.tiff(WORDS >> 2, bits=14), WORDS >> 2, 0, 16383),
    "tiff white of 12 bits": (
        rasters.tiff(TWELVE, bits=12, photometric=0),
        4095 - TWELVE,
        0,
        4095,
    ),
    "tiff with its maximum": (
        rasters.tiff(TWELVE, tags={281: ("H", (4095,))}),
        TWELVE,
        0,
        4095,
    ),
    "signed tiff with its range": (
        rasters.tiff(
            SIGNED.astype(np.int16), tags={340: ("h", (-1000,)), 341: ("h", (2000,))}
        ),
        SIGNED,
        -1000,
        2000,
    ),
    "float tiff with its range": (
        rasters.tiff(PART, tags={340: ("f", (0.25,)), 341: ("f", (0.75,))}),
        PART,
        0.25,
        0.75,
    ),
    "tiff of colours": (rasters.tiff(COLOURS), COLOURS, 0, 65535),
    "tiff of colours of 12 bits": (
        rasters.tiff(COLOURS >> 4, bits=12),
        COLOURS >> 4,
        0,
        4095,
    ),
    "big tiff": (saved(WORDS, "TIFF", big_tiff=True), WORDS, 0, 65535),
    "tiff of three bands": (
        rasters.tiff(COLOURS, photometric=1, tags=BANDS),
        COLOURS,
        0,
        65535,
    ),
    "tiff of three bands, the other order": (
        rasters.tiff(COLOURS, ">", photometric=1),
        COLOURS,
        0,
        65535,
    ),
    "png": (rasters.png(WORDS[..., None], 0), WORDS, 0, 65535),
    "png by pillow": (saved(WORDS, "PNG"), WORDS, 0, 65535),
    "png of colours": (rasters.png(COLOURS, 2), COLOURS, 0, 65535),
    "png of gray and alpha": (
        rasters.png(np.stack([WORDS, WORDS.T.reshape(24, 32)], -1), 4),
        WORDS,
        0,
        65535,
    ),
    "png of colours and alpha": (
        rasters.png(np.concatenate([COLOURS, WORDS[..., None]], -1), 6),
        COLOURS,
        0,
        65535,
    ),
    "pgm": (pnm(b"P5", TWELVE, 4095), TWELVE, 0, 4095),
    "pgm of text": (pnm(b"P2", WORDS >> 6, 1000), WORDS >> 6, 0, 1000),
    "ppm": (pnm(b"P6", COLOURS >> 4, 4095), COLOURS >> 4, 0, 4095),
    "ppm of text": (pnm(b"P3", COLOURS, 65535), COLOURS, 0, 65535),
    "jpeg 2000": (saved(WORDS, "JPEG2000"), WORDS, 0, 65535),
}
UNDECLARED = {
    "float tiff": (rasters.tiff(PART), PART),
    "float tiff of the other order": (rasters.tiff(PART, ">"), PART),
    "double tiff": (rasters.tiff(PART.astype(float)), PART),
    "float tiff of colours": (
        rasters.tiff((COLOURS / 65535).astype(np.float32)),
        COLOURS / 65535,
    ),
    "signed tiff of 8 bits": (rasters.tiff((SIGNED >> 8).astype(np.int8)), SIGNED >> 8),
    "signed tiff": (rasters.tiff(SIGNED.astype(np.int16)), SIGNED),
    "signed tiff of 32 bits": (rasters.tiff(SIGNED.astype(np.int32)), SIGNED),
    "tiff of 32 bits": (rasters.tiff(WORDS.astype(np.uint32) << 16), 2.0**16 * WORDS),
    "pfm": (pfm(b"Pf", PART), PART),
    "pfm of colours": (pfm(b"PF", COLOURS / 65535), COLOURS / 65535),
}


@pytest.mark.parametrize("kind", DECLARED)
def test_the_declared_range_becomes_black_to_white(kind):
    data, values, low, high = DECLARED[kind]
    got = decode.decode(data).astype(int)
    # Pillow, and so the reference, takes the high byte of 16 bits: less by up to 1.
    assert np.abs(got - linear(values, low, high)).max() <= 1
    assert got.min() <= 1 and got.max() >= 254


@pytest.mark.parametrize("kind", DECLARED | UNDECLARED)
def test_a_stated_range_becomes_black_to_white(kind):
    data, values = (DECLARED | UNDECLARED)[kind][:2]
    low, high = np.quantile(values, [0.2, 0.7]).tolist()
    if "white" in kind:  # stated in the units of the file
        top = 4095 if "12" in kind else 65535
        got = decode.decode(data, rules=rules.Rules((top - high, top - low)))
    else:
        got = decode.decode(data, rules=rules.Rules((low, high)))
    expected = linear(values, low, high)
    # Halves round either way in float32.
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (got == expected).mean() > 0.99


@pytest.mark.parametrize("kind", UNDECLARED)
def test_samples_without_a_range_are_refused_by_the_name_of_the_setting(kind):
    data, values = UNDECLARED[kind]
    with pytest.raises(decode.DecodeError, match=r"data\.range=LOW,HIGH") as refused:
        decode.decode(data)
    assert refused.value.reason == "no data.range"
    low, high = re.search(r"from (\S+) to (\S+) here", str(refused.value)).groups()
    # Shown to six digits.
    np.testing.assert_allclose(float(low), values.min(), rtol=1e-5)
    np.testing.assert_allclose(float(high), values.max(), rtol=1e-5)


@pytest.mark.parametrize("kind", DECLARED | UNDECLARED)
def test_samples_are_told_in_the_units_of_the_file(kind):
    data, values = (DECLARED | UNDECLARED)[kind][:2]
    got = decode.samples(data)
    if got.inverted:
        values = (4095 if "12" in kind else 65535) - values
    # What one rounding to float32 may be.
    np.testing.assert_allclose(got.values, values, rtol=1e-6)


def test_images_of_8_bits_know_no_range():
    picture = np.ascontiguousarray((COLOURS >> 8).astype(np.uint8))
    told = rules.of("10,20")
    for kind in ("PNG", "BMP", "TIFF", "PPM", "JPEG"):
        data = saved(picture, kind)
        np.testing.assert_array_equal(
            decode.decode(data, rules=told), decode.decode(data)
        )
        assert decode.samples(data) is None
    white = rasters.tiff(picture[..., 0], photometric=0)
    np.testing.assert_array_equal(decode.decode(white)[..., 1], 255 - picture[..., 0])


@pytest.mark.parametrize("photometric", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_three_bands_of_8_bits_are_colours(photometric, order):
    picture = (COLOURS >> 8).astype(np.uint8)
    for tags in ({}, BANDS) if photometric == 1 else ({},):
        data = rasters.tiff(picture, order, photometric=photometric, tags=tags)
        np.testing.assert_array_equal(decode.decode(data), picture)


def test_jpeg_2000_of_12_bits_is_not_taken_for_16():
    # Lossless 16-bit data whose header is made to declare 12 has its zero elsewhere.
    data = bytearray(saved(TWELVE + np.uint16(2**15 - 2**11), "JPEG2000"))
    data[data.index(b"\xff\x51") + 40] = data[data.index(b"ihdr") + 14] = 11
    data = bytes(data)
    np.testing.assert_array_equal(decode.samples(data).values, TWELVE)
    got = decode.decode(data).astype(int)
    assert np.abs(got - linear(TWELVE, 0, 4095)).max() <= 1


def test_a_stated_range_reaches_colours_of_jpeg_2000():
    values = RNG.integers(0, 4096, (128, 128, 3), dtype=np.uint16)
    lossless = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)
    data = cv2.imencode(".jp2", values[..., ::-1], lossless)[1].tobytes()
    got = decode.decode(data, rules=rules.of("0,4095")).astype(int)
    # Its wavelets of real numbers lose a level of 4096 here and there.
    assert np.abs(got - linear(values, 0, 4095)).max() <= 1


def test_what_is_no_number_is_black_and_what_is_infinite_is_at_the_end():
    values = np.array([[np.nan, -np.inf, np.inf, 0.5]], np.float32)
    got = decode.decode(rasters.tiff(values), rules=rules.of("0,1"))
    assert got[0, :, 0].tolist() == [0, 0, 255, 128]


@pytest.mark.parametrize("start", [b"P5", b"P6 9 9", b"PF\n", b"P2 9 #"])
def test_a_header_of_nothing_but_gaps_is_soon_refused(start):
    for gap in (b" ", b"#\n", b" #\n\n"):
        with pytest.raises(decode.DecodeError):
            decode.decode(start + gap * 2**16 + b"x")


def refused(samples, **more):
    with pytest.raises(decode.DecodeError) as caught:
        decode.decode(rasters.tiff(samples, **more))
    return str(caught.value)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bands", [4, 5, 13])
def test_a_tiff_of_many_bands_is_called_that(bands, planar, kind, capfd, caplog):
    bands_of = np.ones((24, 32, bands), kind)
    extra = {338: ("H", (0,) * (bands - 1))}
    line = refused(bands_of, photometric=1, planar=planar, tags=extra)
    assert f"a TIFF of {bands} bands" in line and "1 or 3 (4 with alpha)" in line
    # Neither OpenCV nor Pillow says a word beside it.
    assert not any(capfd.readouterr()) and not caplog.records


def test_samples_that_nothing_decodes_are_called_what_they_are():
    assert "complex samples of 64 bits" in refused(WORDS.astype(np.complex64))
    assert "float samples of 16 bits" in refused(PART.astype(np.float16))
    assert "samples of 11 bits" in refused(WORDS >> 5, bits=11)
    assert "3 separate planes of 16 bits" in refused(COLOURS, planar=True)
    alpha = {338: ("H", (2,))}
    assert "2 separate planes of 8 bits" in refused(
        np.ones((24, 32, 2), np.uint8), planar=True, tags=alpha
    )
    more = {338: ("H", (0, 0))}
    assert "a TIFF of 5 bands" in refused(
        np.ones((24, 32, 5), np.uint16), photometric=2, tags=more
    )


@pytest.mark.parametrize("kind", [*DECLARED, *UNDECLARED])
def test_a_deep_image_is_refused_by_its_header_and_by_its_end(kind):
    data = (DECLARED | UNDECLARED)[kind][0]
    with pytest.raises(decode.DecodeError, match="24 x 32"):
        decode.decode(data, max_pixels=24 * 32 - 1)
    told = rules.of("0,1")
    with pytest.raises(decode.DecodeError, match=r"bytes are a .*(cut|damaged)"):
        decode.decode(data[: len(data) // 2], rules=told)
