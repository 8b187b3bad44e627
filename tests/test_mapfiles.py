"""Maps in files of every format: the numbers that were written, or a refusal by name."""

import pathlib
import pickle
import struct
import zlib

import densefiles
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.cli import evaluate_segmentation
from dinov2_jax.data import dense, mapfiles

IDS = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
COLORS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)


def png(bits: int, kind: int = 0, channels: int = 1) -> bytes:
    """A PNG of IDS in so many bits, byte by byte: 0 is grey, 2 RGB, 4 grey and alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    rows = b""
    for row in IDS:
        text = "".join(format(i, f"0{bits}b") for i in row for _ in range(channels))
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    head = struct.pack(">IIBBBBB", 5, 4, bits, kind, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def tiff_of_4_bits() -> bytes:
    """A TIFF of IDS in 4 bits, byte by byte."""
    rows = b"".join(
        int("".join(format(i, "04b") for i in row) + "0000", 2).to_bytes(3, "big")
        for row in IDS
    )
    tags = {256: 5, 257: 4, 258: 4, 259: 1, 262: 1, 273: 8, 278: 4, 279: len(rows)}
    table = b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags.items())
    start = struct.pack("<2sHI", b"II", 42, 8 + len(rows))
    return start + rows + struct.pack("<H", len(tags)) + table + bytes(4)


def saved(picture: Image.Image, **options):
    """Writes a picture to a path."""
    return lambda path: picture.save(path, **options)


GREY = Image.fromarray(IDS)
SOUND = {
    "grey.tif": saved(GREY),
    "packed.tiff": saved(GREY, compression="tiff_lzw"),
    "grey.bmp": saved(GREY),
    "lossless.webp": saved(GREY.convert("RGB"), lossless=True),
    "grey_in_colours.png": saved(GREY.convert("RGB")),
    "opaque.png": saved(GREY.convert("RGBA")),
    "16.tif": saved(Image.fromarray(IDS.astype(np.uint16))),
    "32.tif": saved(Image.fromarray(IDS.astype(np.int32))),
    "2_bits.png": lambda path: path.write_bytes(png(2)),
    "4_bits.png": lambda path: path.write_bytes(png(4)),
    "16_bits.png": lambda path: path.write_bytes(png(16)),
    "4_bits.tif": lambda path: path.write_bytes(tiff_of_4_bits()),
}
TRANSPARENT = np.dstack([np.repeat(IDS[..., None], 3, 2), IDS * 127])
REFUSED = {
    "jpeg.png": (saved(GREY, format="JPEG"), "is JPEG, which does not keep"),
    "lossy.webp": (saved(GREY.convert("RGB")), "is lossy WebP"),
    "jpeg.tif": (saved(GREY, compression="jpeg"), "is a TIFF of JPEG"),
    "moving.tif": (saved(GREY, save_all=True, append_images=[GREY]), "2 pictures"),
    "gif.png": (saved(GREY, format="GIF"), "is GIF of 1 pictures"),
    "colours.png": (saved(Image.fromarray(COLORS)), r"not colours such as \("),
    "holes.png": (saved(Image.fromarray(TRANSPARENT)), "transparent pixels"),
    "float.tif": (
        saved(Image.fromarray(IDS.astype(np.float32))),
        "holds float32; a label map holds integers",
    ),
    "16_rgb.png": (lambda path: path.write_bytes(png(16, 2, 3)), "mode RGB and 16"),
    "16_alpha.png": (lambda path: path.write_bytes(png(16, 4, 2)), "and 16 bits"),
    "cmyk.tif": (saved(Image.fromarray(COLORS).convert("CMYK")), "mode CMYK"),
}


@pytest.mark.parametrize("name", SOUND)
def test_lossless_files_give_the_ids_that_were_written(name, tmp_path):
    SOUND[name](tmp_path / name)
    found = dense.read_labels(str(tmp_path / name), classes=3)
    np.testing.assert_array_equal(found, IDS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_no_ids_is_refused_by_name(name, tmp_path):
    write, told = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=told) as caught:
        dense.read_labels(str(tmp_path / name), classes=3)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "got 0"),
        (b"text", "expected 6 bytes got 4|magic string"),
        (b"PK\3\4 a .npz under another name", "the magic string is not correct"),
        (pickle.dumps([1]), "the magic string is not correct"),
    ],
)
def test_what_is_no_npy_is_not_taken_for_a_pickle(data, told, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=told) as caught:
        mapfiles.load(str(path), "a depth map")
    assert "a.npy cannot be read as a depth map" in str(caught.value)
    assert "pickle" not in str(caught.value)


def test_depth_may_be_tiff_and_has_more_than_8_bits(tmp_path):
    metres = np.array([[0.5, 0.0], [9.25, np.nan]], np.float32)
    Image.fromarray(metres).save(tmp_path / "a.tif")
    found = dense.read_depth(str(tmp_path / "a.tif"), scale=256.0)
    np.testing.assert_array_equal(found, [[0.5, 0], [9.25, 0]])
    Image.fromarray(np.array([[512, 0]], np.uint16)).save(tmp_path / "b.tif")
    np.testing.assert_array_equal(
        dense.read_depth(str(tmp_path / "b.tif"), scale=256.0), [[2, 0]]
    )
    GREY.save(tmp_path / "c.png")
    with pytest.raises(ValueError, match="c.png is a picture of 8 bits; a depth map"):
        dense.read_depth(str(tmp_path / "c.png"))


def pairs(root: pathlib.Path, ending: str, names: str = "ab") -> str:
    """Spec of photographs with maps of an ending."""
    for name in names:
        for part, end in (("images", ".png"), ("maps", ending)):
            (root / part).mkdir(exist_ok=True)
            picture = Image.fromarray(COLORS if part == "images" else IDS)
            picture.save(root / part / f"{name}{end}")
    return f"pairs:{root / 'images'},{root / 'maps'}"


@pytest.mark.parametrize("ending", mapfiles.LOSSLESS[2:5])
def test_maps_of_lossless_endings_are_taken(ending, tmp_path):
    found = dense.open_labels(pairs(tmp_path, ending), classes=3)
    np.testing.assert_array_equal(found[1].target, IDS)


def test_maps_of_other_endings_are_named_with_the_reason(tmp_path):
    spec = pairs(tmp_path, ".jpg")
    with pytest.raises(ValueError, match="2 maps, such as .*a.jpg, .* lossy format"):
        dense.open_labels(spec, classes=3)


def test_maps_of_known_layouts_are_named_likewise(tmp_path):
    for folder, name in (("images", "x.jpg"), ("annotations", "x.jpg")):
        path = tmp_path / folder / "validation" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(COLORS).save(path)
    (tmp_path / "annotations" / "validation" / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="1 maps, such as .*x.jpg, .* lossy format"):
        dense.open_labels(f"ade20k:{tmp_path}:validation")


def test_a_setting_says_which_id_is_which_class(tmp_path):
    binary = np.where(IDS == 1, 255, IDS // 2 * 128).astype(np.uint8)
    Image.fromarray(binary).save(tmp_path / "a.png")
    ids = evaluate_segmentation.ids_of("0:0, 255:1, 128:ignore")
    assert ids == {0: 0, 255: 1, 128: dense.IGNORED}
    found = dense.read_labels(str(tmp_path / "a.png"), classes=2, ids=ids)
    np.testing.assert_array_equal(found, np.where(IDS == 2, -1, IDS.astype(int)))
    with pytest.raises(ValueError, match="holds the ids 128; ids=0:0,255:1 and 255"):
        dense.read_labels(str(tmp_path / "a.png"), classes=2, ids={0: 0, 255: 1})
    spec = densefiles.coin_folders(tmp_path)[0]
    assert dense.open_labels(spec, ids={0: 1, 1: 0}).classes == ("ground", "coin")
    with pytest.raises(ValueError, match="must name classes from 0 to 1, or ignore"):
        dense.open_labels(spec, ids={0: 0, 1: 2}, classes=2)
    for text in ("0", "0:x", "1:0,1:1", "0:-2", "0:ignore"):
        with pytest.raises(ValueError, match="is not ID:CLASS"):
            evaluate_segmentation.ids_of(text)
