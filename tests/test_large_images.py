"""Large pictures: what shrinks can read them, and one limit holds everywhere."""

import io

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.cli import data_stats
from dinov2_jax.data import decode, sources


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", decode.FORMATS)
def test_pillows_own_limit_is_not_ours(kind, monkeypatch):
    picture = Image.linear_gradient("L").convert("RGB")
    data = encoded(picture, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(decode.decode(data), expected)
    assert decode.size_of(data) == (256, 256)
    with pytest.raises(decode.DecodeError, match="256 x 256 = 65536 pixels"):
        decode.decode(data, max_pixels=256 * 256 - 1)


@pytest.mark.slow
def test_a_png_above_pillows_limit_is_read_by_ours():
    side = 13_400
    picture = Image.new("1", (side, side))
    picture.paste(1, (0, 0, side, side // 2))
    data = encoded(picture, "PNG")
    assert side * side > 178_956_970
    with pytest.raises(decode.DecodeError, match="179560000 pixels"):
        decode.decode(data)
    got = decode.decode(data, max_pixels=side * side, longest=100)
    assert got.shape == (100, 100, 3)
    assert got[:50].min() == 255 and got[50:].max() == 0


def pack(root, out, *more):
    return command.main(
        ["data", "pack", f"folder:{root}", str(out), "--workers=1", *more]
    )


def test_pack_shrinks_what_is_too_large_to_train_on(tmp_path, capsys):
    root = tmp_path / "images"
    root.mkdir()
    large = encoded(Image.new("L", (10_000, 9_000), 90), "JPEG")
    (root / "large.jpg").write_bytes(large)
    (root / "small.png").write_bytes(encoded(Image.new("RGB", (40, 30)), "PNG"))
    (root / "text.png").write_bytes(b"<html>404")
    some = ("--max-skipped=1",)
    assert pack(root, tmp_path / "whole", *some) == 0
    out = capsys.readouterr().out
    assert "2 of 3 records skipped (1 too large, 1 no image)" in out
    assert pack(root, tmp_path / "shrunk", "--longest=100", *some) == 0
    assert "1 of 3 records skipped (1 no image)" in capsys.readouterr().out
    packed = sources.open_source(f"arrayrecord:{tmp_path / 'shrunk'}")
    image = decode.decode(packed[0].image)
    assert image.shape == (90, 100, 3) and image.min() == image.max() == 90
    limit = ("--longest=100", "--max-pixels=1000")
    assert pack(root, tmp_path / "limited", *limit, *some) == 1
    capsys.readouterr()
    check = ["data", "check", f"folder:{root}", "--workers=1"]
    assert command.main(check) == 1
    assert "3 records, 2 bad (1 too large, 1 no image)" in capsys.readouterr().out
    assert command.main([*check, "--max-pixels=1000"]) == 1
    assert "3 records, 3 bad (2 too large, 1 no image)" in capsys.readouterr().out
    source = sources.open_source(f"folder:{root}")
    found = data_stats.described(source, np.arange(3), 1200, decode.RULES)
    assert found["reasons"] == {"too large": 1, "no image": 1}
