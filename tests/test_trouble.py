"""Runs that meet trouble: steps that are not finite, a full disk, corrupt images."""

import contextlib
import json
import re
import struct
import subprocess
import zlib

import numpy as np
import pytest
import test_run
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.train import history

straight = test_run.straight  # the fixture: a run that met none

# After a step at this rate the weights are so large that nothing is finite any more.
WILD = ["--config.optim.base_lr=1e36", "--config.eval.every=0"]


def test_steps_that_are_not_finite_end_the_run_and_can_be_seen_again(
    tmp_path, capsys, told
):
    ended, endless = tmp_path / "ended", tmp_path / "endless"
    given = test_run.arguments(ended, *WILD, "--config.train.max_rejected=3")
    assert command.main(given) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "3 steps in a row were not finite" in said and "loss/total=nan" in said
    told("steps that are not finite", said)
    replay = re.search(r"--replay=(\S+)", said)[0]
    step = int(replay.rpartition("/")[2])
    assert history.reproducible(ended)[-1]["step"] < step

    assert command.main([*given, replay]) == 3
    shown = capsys.readouterr().out
    assert "not finite: the gradient of backbone/blocks/" in shown
    # The same step of a run that went on, to the last digit that is shown.
    other = test_run.arguments(endless, *WILD, "--config.train.max_rejected=99")
    assert command.main(other) == 0
    want = next(x for x in history.reproducible(endless) if x["step"] == step)
    found = dict(re.findall(r"^  (\S+/\S+) +(\S+)$", shown, re.MULTILINE))
    assert set(found) == set(want) - {"step", "data/skipped", "data/retries"}
    for name in set(found) - {"health/rejected"}:
        value = float("nan") if want[name] is None else want[name]
        same = found[name] == f"{value:.8g}"
        assert same or not (np.isfinite(value) or np.isfinite(float(found[name])))


def test_a_replay_of_what_is_no_step_is_refused(tmp_path, capsys):
    given = test_run.arguments(tmp_path / "run", f"--replay={tmp_path}")
    assert command.main(given) == 1
    assert "holds no step" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("mounting a small disk needs the rights of root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, leave: int):
    """A file that takes all but `leave` bytes of a disk."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - leave)
    return ballast


# Bytes that are left: no line more; no checkpoint.
@pytest.mark.parametrize("leave", [0, pytest.param(300_000, marks=pytest.mark.slow)])
def test_a_full_disk_ends_the_run_in_one_line_and_costs_no_checkpoint(
    leave, straight, small_disk, capsys, told
):
    workdir = small_disk / "run"
    given = test_run.arguments(workdir)
    assert command.main([*given, "--config.train.stop_at=3"]) == 0
    ballast = fill(small_disk, leave)
    capsys.readouterr()
    assert command.main(given) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in said and str(workdir) in said
    assert len(said) < 500
    told("a full disk while saving", said)
    ballast.unlink()
    assert command.main(given) == 0
    assert "continuing at step 3" in capsys.readouterr().err
    assert history.reproducible(workdir) == history.reproducible(straight)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that declares side x side pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def five_in_a_hundred(tmp_path):
    """100 images in two classes, of which five are corrupt in different ways."""
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    for i in range(95):
        path = folder / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(path)
    whole = (folder / "class0/0.png").read_bytes()
    bad = {
        "truncated.png": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "text.png": b"this is no image\n" * 9,
        "archive.jpg": b"PK\x03\x04" + bytes(99),
        "bomb.png": bomb(30_000),
    }
    for name, data in bad.items():
        (folder / "class1" / name).write_bytes(data)
    return folder, bad


def test_a_folder_with_corrupt_images_trains(five_in_a_hundred, tmp_path):
    (folder, bad), workdir = five_in_a_hundred, tmp_path / "run"
    splits = [f"--config.data.{name}=folder:{folder}" for name in ("train", "val")]
    # 14 steps of 16 images are two epochs and a bit: every image comes.
    given = test_run.arguments(workdir, *splits, "--config.train.steps=14")
    assert command.main(given) == 0
    named = (workdir / "skipped.txt").read_text().splitlines()
    assert sorted(line.rpartition("/")[2] for line in named) == sorted(bad)
    counted = sum(line.get("data/skipped", 0) for line in history.reproducible(workdir))
    assert 2 * len(bad) <= counted <= 3 * len(bad)
    peak = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert "memory/peak_gib" in peak[-1]


def test_above_a_share_of_corrupt_images_the_run_stops(
    five_in_a_hundred, tmp_path, capsys, told
):
    (folder, _), workdir = five_in_a_hundred, tmp_path / "run"
    given = test_run.arguments(
        workdir,
        f"--config.data.train=folder:{folder}",
        "--config.eval.every=0",
        "--config.data.max_skipped=0.01",
        "--config.train.steps=14",
    )
    assert command.main(given) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "of 16 records" in said and "data.max_skipped=0.01" in said
    assert "skipped.txt" in said
    told("too many corrupt images", said)
