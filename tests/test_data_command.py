"""dinov2-jax data: packed shards hold what the source held, and damage is named."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.data import decode, sources


def jpeg(value, size=(30, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value // 2, 7)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    """Twelve images in two classes, one of them large and one broken."""
    root = tmp_path / "images"
    for i in range(12):
        path = root / ("cat", "dog")[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(9 * i, (200, 90) if i == 4 else (30, 20)))
    (root / "dog" / "07.jpg").write_bytes(b"no image")
    return root


def data(*arguments):
    return command.main(["data", *map(str, arguments)])


def pack(images, out, *more):
    more = ("--shard-records=5", "--workers=1", "--max-skipped=0.2", *more)
    return data("pack", f"folder:{images}", out, *more)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_packed_records_are_the_bytes_labels_and_classes_of_the_source(
    images, tmp_path, capsys
):
    out = tmp_path / "packed"
    assert pack(images, out) == 0
    source = sources.open_source(f"folder:{images}")
    made = sources.open_source(f"arrayrecord:{out}")
    good = [i for i in range(12) if source[i].image != b"no image"]
    assert [made[i] for i in range(11)] == [source[i] for i in good]
    assert made.classes == ("cat", "dog") and len(made) == 11
    known = json.loads((out / "manifest.json").read_text())
    assert [shard["records"] for shard in known["shards"]] == [5, 4, 2]
    assert "07.jpg" in (out / "skipped.txt").read_text()
    assert "1 of 12 records skipped" in capsys.readouterr().out
    assert not (out / ".parts").exists() and not list(out.glob("*.part"))


def test_processes_write_the_same_bytes(images, tmp_path):
    pack(images, tmp_path / "one")
    pack(images, tmp_path / "two", "--workers=2")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_killed_pack_goes_on_to_the_same_bytes(tmp_path):
    spec, more = "demo:train", ("--shard-records=16", "--workers=1")
    assert data("pack", spec, tmp_path / "straight", *more) == 0
    out = tmp_path / "killed"
    line = [sys.executable, "-m", "dinov2_jax", "data", "pack", spec, str(out), *more]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as running:
        while not list(out.glob("data-00003*.arrayrecord")):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert not (out / "manifest.json").exists()
    kept = max(out.glob("data-00002*.arrayrecord")).stat().st_mtime_ns
    assert data("pack", spec, out, *more) == 0
    assert max(out.glob("data-00002*.arrayrecord")).stat().st_mtime_ns == kept
    assert files(out) == files(tmp_path / "straight")


def test_arrays_are_kept_without_loss_and_orders_are_drawn(tmp_path):
    source = sources.open_source("demo:val")
    out = tmp_path / "packed"
    assert data("pack", "demo:val", out, "--shuffle=3", "--workers=1") == 0
    made = sources.open_source(f"arrayrecord:{out}")
    order = np.random.default_rng(3).permutation(len(source))
    assert made.classes == source.classes
    for i in (0, 7, len(source) - 1):
        expected = source[int(order[i])]
        np.testing.assert_array_equal(
            decode.decode(made[i].image), decode.decode(expected.image)
        )
        assert made[i].label == expected.label


def test_only_images_larger_than_the_bound_are_shrunk(images, tmp_path, capsys):
    assert pack(images, tmp_path / "packed", "--longest=100") == 0
    assert "1 shrunk" in capsys.readouterr().out
    made = sources.open_source(f"arrayrecord:{tmp_path}/packed")
    sizes = [decode.decode(made[i].image).shape[:2] for i in range(len(made))]
    assert sorted(sizes) == [(20, 30)] * 10 + [(45, 100)]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--max-skipped=0.01"], "1 of 12 records cannot be read"),
        (["--shard-records=0"], "at least 1"),
        (["--quality=0"], "from 1 to 100"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_one_line(
    more, words, images, tmp_path, capsys
):
    assert pack(images, tmp_path / "packed", *more) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "packed" / "manifest.json").exists()


def test_other_settings_in_a_begun_folder_are_refused(images, tmp_path, capsys):
    out = tmp_path / "packed"
    assert pack(images, out, "--max-skipped=0") == 1  # begun, not finished
    assert pack(images, out, "--longest=9") == 1
    assert "longest None -> 9" in capsys.readouterr().err
    assert pack(images, out) == 0
    assert pack(images, out) == 1
    assert "packed already" in capsys.readouterr().err


def test_check_names_corrupt_records_and_shards(images, tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    line = ("check", f"folder:{images}", f"--out={bad}", "--workers=1")
    assert data(*line) == 1
    assert "dog/07.jpg" in bad.read_text()
    assert "12 records, 1 bad" in capsys.readouterr().out
    out = tmp_path / "packed"
    pack(images, out)
    assert data("check", out, "--workers=2") == 0
    shard = out / "data-00001-of-00003.arrayrecord"
    damaged = bytearray(shard.read_bytes())
    for place in (len(damaged) // 2, -9, damaged.find(b"\xff\xd8")):
        damaged[place] ^= 1
        shard.write_bytes(damaged)
        assert data("check", out, "--workers=1") == 1
        assert f"{shard}: its SHA-256" in capsys.readouterr().out
        damaged[place] ^= 1


def test_a_shard_without_a_readable_record_leaves_no_file(images, tmp_path):
    for path in sorted(images.glob("cat/*"))[:2]:
        path.write_bytes(b"no image")
    out = tmp_path / "packed"
    assert pack(images, out, "--shard-records=1", "--max-skipped=1") == 0
    names = {
        shard["file"]
        for shard in json.loads((out / "manifest.json").read_text())["shards"]
    }
    assert (
        names == {path.name for path in out.glob("*.arrayrecord")} and len(names) == 9
    )
    assert data("check", out, "--workers=1") == 0


def test_stats_tell_sizes_classes_and_the_speed_of_each_stage(images, tmp_path, capsys):
    out = tmp_path / "stats"
    assert data("stats", f"folder:{images}", f"--out={out}") == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "stats.json").read_text())
    assert found["records"] == 12 and found["formats"] == {"JPEG": 11}
    assert found["width"] == [30, 30, 30, 30, 200] and found["classes"] == 2
    assert set(found["images_per_cpu_s"]) == {
        "read",
        "decode",
        "crops",
        "host",
        "device",
    }
    assert all(rate > 0 for rate in found["images_per_cpu_s"].values())
    assert "07.jpg" in printed and "bottleneck is crops" in printed
    assert Image.open(out / "stats.png").size[0] > 500
    assert os.listdir(out) and "1 unreadable" in printed


def test_stats_refuse_a_config_whose_crops_cannot_be_cut(images, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "from dinov2_jax.config import default\n\n\ndef get_config():\n"
        "    c = default()\n    c.data.resize = 'cv2'\n    return c\n"
    )
    assert data("stats", f"folder:{images}", f"--config={config}") == 1
    assert "data.resize='cv2'; choose one of pillow" in capsys.readouterr().err


def test_nothing_readable_is_told(tmp_path, capsys):
    (tmp_path / "x.jpg").write_bytes(b"no image")
    assert data("stats", f"folder:{tmp_path}") == 1
    assert "none of 1 records" in capsys.readouterr().err
    assert data("pack", f"folder:{tmp_path}", tmp_path / "out", "--max-skipped=1") == 1
    assert "no readable record" in capsys.readouterr().err
