"""Decoding: every kind of image, and every kind of damage."""

import io

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data import decode

ROWS, COLUMNS = np.mgrid[:41, :53]
IMAGE = np.stack([ROWS * 6, COLUMNS * 4, (ROWS * COLUMNS) % 251], -1).astype(np.uint8)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


PICTURE = Image.fromarray(IMAGE)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # rotated by a quarter
KINDS = {
    "jpeg444": encoded(PICTURE, "JPEG", quality=90, subsampling=0),
    "jpeg422": encoded(PICTURE, "JPEG", quality=50, subsampling=1),
    "jpeg420": encoded(PICTURE, "JPEG", quality=75, subsampling=2),
    "jpeg_progressive": encoded(PICTURE, "JPEG", progressive=True),
    "jpeg_rgb": encoded(PICTURE, "JPEG", keep_rgb=True),
    "jpeg_gray": encoded(PICTURE.convert("L"), "JPEG"),
    "jpeg_cmyk": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "jpeg_rotated": encoded(PICTURE, "JPEG", exif=EXIF),
    "png": encoded(PICTURE, "PNG"),
    "png_palette": encoded(PICTURE.convert("P"), "PNG"),
    "png_transparent_palette": encoded(PICTURE.convert("P"), "PNG", transparency=3),
    "png_alpha": encoded(PICTURE.convert("RGBA"), "PNG"),
    "png_gray_alpha": encoded(PICTURE.convert("LA"), "PNG"),
    "png_bilevel": encoded(PICTURE.convert("1"), "PNG"),
    "webp": encoded(PICTURE, "WEBP"),
    "webp_alpha": encoded(PICTURE.convert("RGBA"), "WEBP"),
    "gif": encoded(PICTURE, "GIF"),
    "bmp": encoded(PICTURE, "BMP"),
    "tiff": encoded(PICTURE, "TIFF"),
    "ppm": encoded(PICTURE, "PPM"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_equals_pillow_bit_for_bit(kind):
    got = decode.decode(KINDS[kind])
    assert got.dtype == np.uint8 and got.shape == (41, 53, 3)
    np.testing.assert_array_equal(got, by_pillow(KINDS[kind]))


def test_sixteen_bit_gray_is_scaled_not_clipped():
    values = np.arange(41 * 53, dtype=np.uint16).reshape(41, 53) * 30
    got = decode.decode(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(got, np.repeat((values >> 8)[..., None], 3, 2))


def test_an_array_passes_through():
    assert decode.decode(IMAGE) is IMAGE
    for wrong in (IMAGE[..., 0], IMAGE.astype(np.float32), IMAGE[:0]):
        with pytest.raises(decode.DecodeError):
            decode.decode(wrong)


@pytest.mark.parametrize("kind", ["jpeg420", "jpeg_progressive", "png", "webp", "gif"])
def test_truncated_images_are_refused(kind):
    data = KINDS[kind]
    for length in (1, 20, len(data) // 2):
        with pytest.raises(decode.DecodeError):
            decode.decode(data[:length])


@pytest.mark.parametrize("data", [b"", b"no image" * 9, bytes(1000), b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(decode.DecodeError, match=f"{len(data)} bytes"):
        decode.decode(data)


def test_postscript_is_never_run():
    with pytest.raises(decode.DecodeError):
        decode.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


@pytest.mark.parametrize("kind", ["jpeg420", "png", "webp", "tiff"])
def test_an_image_above_the_limit_is_refused_by_its_header(kind):
    size = 41 * 53
    decode.decode(KINDS[kind], max_pixels=size)
    with pytest.raises(decode.DecodeError, match="41 x 53"):
        decode.decode(KINDS[kind], max_pixels=size - 1)


def test_a_header_that_declares_too_much_is_refused_before_its_pixels_are_read():
    data = bytearray(KINDS["jpeg420"])
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = b"\x4e\x20\x27\x10"
    with pytest.raises(decode.DecodeError, match="20000 x 10000"):
        decode.decode(bytes(data))


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged tags
def test_random_damage_gives_an_image_or_a_decode_error():
    rng, refused = np.random.default_rng(0), 0
    for turn in range(600):
        data = bytearray(list(KINDS.values())[turn % len(KINDS)])
        data[rng.integers(len(data))] = rng.integers(256)
        data[rng.integers(60)] = rng.integers(256)
        try:
            assert decode.decode(bytes(data), max_pixels=10**6).shape[2] == 3
        except decode.DecodeError:
            refused += 1
    assert 0 < refused < 600


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(1000, 800), (513, 700), (3000, 2), (300, 512)])
def test_a_larger_image_is_shrunk_to_the_longest_side(size, kind):
    side = np.linspace(0, 255, 64)
    smooth = np.stack([side[None] + 0 * side[:, None], side[:, None] + 0 * side], -1)
    smooth = np.concatenate([smooth, smooth[..., :1] * 0 + 90], axis=-1)
    picture = Image.fromarray(smooth.astype(np.uint8)).resize(size)
    data = encoded(picture, kind)
    got = decode.decode(data, longest=512)
    expected = decode.fitted(*size[::-1], 512)
    assert got.shape == (*expected, 3) and max(expected) <= 512 and min(expected) >= 1
    whole = decode.decode(data)
    if max(size) <= 512:
        np.testing.assert_array_equal(got, whole)
    reference = np.asarray(Image.fromarray(whole).resize(expected[::-1]), int)
    # A smooth picture hardly depends on the filter that it is shrunk by; of two lines
    # of a JPEG an eighth of the size leaves other colours.
    assert min(size) < 8 or np.abs(got - reference).mean() < 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_tells_the_size(kind):
    assert decode.size_of(KINDS[kind], max_pixels=41 * 53) == (41, 53)
    with pytest.raises(decode.DecodeError, match="41 x 53 = 2173 pixels"):
        decode.size_of(KINDS[kind], max_pixels=41 * 53 - 1)


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "bmp", "tiff", "ppm"])
def test_a_header_that_is_cut_off_gives_no_size(kind):
    for length in range(30):
        try:
            assert decode.size_of(KINDS[kind][:length]) == (41, 53)
        except decode.DecodeError:
            pass


@pytest.mark.parametrize("kind", ["tiff", "png", "webp"])
def test_a_header_of_zeros_is_called_damaged(kind):
    data = bytearray(KINDS[kind])
    if kind == "tiff":  # its directory stands behind the pixels
        start = int.from_bytes(data[4:8], "little")
        data[start:] = bytes(len(data) - start)
    else:
        place = {"png": 16, "webp": 26}[kind]
        data[place : place + 4] = bytes(4)
    with pytest.raises(decode.DecodeError, match="damaged") as caught:
        decode.decode(bytes(data))
    assert caught.value.reason == "damaged"
