"""Bytes that are no image here are called what they are, and never in Pillow's words."""

import gzip
import io
import re
import struct
import zipfile

import numpy as np
import pytest
import rasters
from PIL import Image

from dinov2_jax.data import decode


def boxes(*brands):
    """The head of a file of ISO boxes, of a main brand and others."""
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + bytes(200)


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.jpg", b"x")
    return buffer.getvalue()


def jpeg(start, precision=8):
    """The head of a JPEG whose frame begins with a marker."""
    table = b"\xff\xdb" + struct.pack(">H", 67) + bytes(65)
    frame = struct.pack(">HBHHB", 11, precision, 9, 9, 1) + b"\x01\x11\x00"
    return b"\xff\xd8" + table + bytes([0xFF, start]) + frame


GRAY = np.zeros((9, 9), np.uint16)
CANON = np.frombuffer(b"CR\2\0" + bytes(158), "<u2").reshape(9, 9)
THUMBNAIL = {254: ("I", (1,)), 330: ("I", (8,))}
NAMED = {
    "HEIC": (boxes(b"heic", b"mif1"), "a HEIC image; convert it"),
    "HEIC by its second brand": (boxes(b"mif1", b"heic", b"miaf"), "a HEIC image"),
    "a HEIC sequence": (boxes(b"msf1", b"hevc"), "a HEIC image"),
    "CR3": (boxes(b"crx ", b"isom"), "Canon CR3"),
    "MP4": (boxes(b"isom", b"mp42"), "a video (MP4"),
    "QuickTime": (boxes(b"qt  "), "a video (MP4 or QuickTime)"),
    "JPEG XL": (b"\xff\x0a" + bytes(90), "a JPEG XL image"),
    "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(90), "a JPEG XL image"),
    "PDF": (b"%PDF-1.7\n" + bytes(90), "a PDF document"),
    "HTML": (b"\n<!DOCTYPE html><p>404", "an HTML page"),
    "HTML with a mark": (b"\xef\xbb\xbf<html><body>", "an HTML page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>", "an XML text"),
    "JSON": (
        b'{"error": "rate limit"}',
        "a JSON text, such as a server's error; download",
    ),
    "HTML behind a comment": (b"<!-- x --><html>", "an HTML page"),
    "SVG": (b"<?xml version='1.0'?>\n<svg width='9'/>", "an SVG drawing"),
    "Photoshop": (b"8BPS\0\1" + bytes(90), "a Photoshop document"),
    "DICOM": (bytes(128) + b"DICM" + bytes(90), "a DICOM file"),
    "DICOM with a preamble": (b"any " * 32 + b"DICM" + bytes(90), "a DICOM file"),
    "ZIP": (archive(), "a zip file; unpack it"),
    "gzip": (gzip.compress(b"x" * 99), "gzip-compressed; unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(90), "zstd-compressed; unpack it"),
    "Parquet": (b"PAR1" + bytes(90), "a Parquet file; read it as parquet:PATH"),
    "HDF5": (b"\x89HDF" + bytes(90), "an HDF5 file; write its images as files"),
    "Matroska": (b"\x1a\x45\xdf\xa3" + bytes(90), "a video (Matroska"),
    "AVI": (b"RIFF\0\0\1\0AVI LIST" + bytes(90), "a video (AVI)"),
    "DNG": (rasters.tiff(GRAY, tags={50706: ("B", (1, 4, 0, 0))}), "raw file"),
    "CR2": (rasters.tiff(CANON), "raw file"),
    "NEF": (rasters.tiff(GRAY.astype("u1"), ">", tags=THUMBNAIL), "raw file"),
    "sensor": (rasters.tiff(GRAY, photometric=32803), "raw file"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "AppleDouble": (b"\0\5\x16\7\0\2\0\0" + bytes(90), "AppleDouble"),
    "NumPy": (b"\x93NUMPY\1\0" + bytes(90), "a NumPy array"),
    "nothing": (b"", "an empty file"),
    "zeros": (bytes(999), "all zero"),
    "12-bit JPEG": (jpeg(0xC1, 12), "a JPEG image of 12 bits"),
    "lossless JPEG": (jpeg(0xC3), "a lossless JPEG image"),
    "JPEG-LS": (jpeg(0xF7), "a lossless JPEG image"),
    "what nobody knows": (b"no image" * 9, "no image of JPEG, PNG"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_is_no_image_is_called_what_it_is(kind):
    data, words = NAMED[kind]
    with pytest.raises(decode.DecodeError) as refused:
        decode.decode(data)
    line = str(refused.value)
    assert line.startswith(f"these {len(data)} bytes are ")
    assert words in line


@pytest.mark.parametrize("kind", decode.FORMATS)
def test_a_damaged_image_is_called_by_its_format(kind, capfd, caplog):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, kind)
    data = buffer.getvalue()
    for part in (data[: len(data) // 2], data[: len(data) // 9], data[:20]):
        with pytest.raises(decode.DecodeError) as refused:
            decode.decode(part)
        line = str(refused.value)
        known = f"these {len(part)} bytes are a {kind} image that is "
        assert line.startswith(known) or kind in ("WEBP", "AVIF")
        assert refused.value.reason in ("damaged", "no image")
        # Words of Pillow's own.
        assert not re.search(r"BytesIO|identify|truncated|not processed", line)
    assert not any(capfd.readouterr()) and not caplog.records


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_newer_formats_equal_pillow_bit_for_bit(kind):
    if kind not in decode.FORMATS:
        pytest.skip(f"this Pillow was built without {kind}")
    ramp = np.mgrid[:64, :48][0].astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ramp, ramp * 2, 255 - ramp], -1)).save(buffer, kind)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    np.testing.assert_array_equal(decode.decode(buffer.getvalue()), expected)


def test_formats_that_another_pillow_would_read_are_named(monkeypatch):
    jp2 = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(90)
    monkeypatch.setattr(decode, "FORMATS", ("JPEG", "PNG"))
    for data, words in (
        (boxes(b"avif", b"mif1"), "an AVIF image; install Pillow 11.3"),
        (boxes(b"mif1", b"avif"), "an AVIF image; install Pillow 11.3"),
        (jp2, "a JPEG 2000 image; convert it"),
        (b"\xff\x4f\xff\x51" + bytes(90), "a JPEG 2000 image; convert it"),
    ):
        with pytest.raises(decode.DecodeError, match=words):
            decode.decode(data)
