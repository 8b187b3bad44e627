"""Real runs through the command line: they learn files, stop, continue, start over."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import tiny

from dinov2_jax import __main__ as command
from dinov2_jax import config as settings
from dinov2_jax.train import history

TINY = [
    f"--config.{name}={value}"
    for name, value in settings.fields(tiny.config())
    if dict(settings.fields(settings.default()))[name] != value
]
DATA = ["--config.data.train=demo:train", "--config.data.val=demo:val"]


def arguments(workdir: pathlib.Path, *more: str) -> list[str]:
    """The command of a tiny run on the embedded photographs."""
    config = pathlib.Path(__file__).parents[1] / "configs/vitl16_in1k_short.py"
    return [
        "train",
        f"--config={config}",
        f"--workdir={workdir}",
        "--config.mesh.remat=none",
        *TINY,
        *DATA,
        *more,
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert command.main(arguments(workdir)) == 0
    return workdir


def test_a_run_leaves_all_that_is_promised(straight):
    for name in (
        "metrics.jsonl",
        "config.json",
        "run.json",
        "report.html",
        "export/backbone.safetensors",
        "pictures/crops.png",
        "pictures/pca.png",
        "checkpoints/8",
    ):
        assert (straight / name).exists(), name
    found = history.reproducible(straight)
    assert [line["step"] for line in found] == list(range(9))
    assert {"knn/top1", "knn/raw_pixels_top1", "knn/color_histogram_top1"} <= set(
        found[0]
    )
    assert "knn/top1" in found[4] and "knn/top1" not in found[5]
    for name in ("loss/total", "sched/lr", "sched/momentum", "grad_norm/backbone"):
        assert name in found[1]
    timed = json.loads((straight / "metrics.jsonl").read_text().splitlines()[1])
    assert {"time/images_per_s", "time/data_wait_s", "time/step_s"} <= set(timed)
    tensors = safetensors.numpy.load_file(straight / "export/backbone.safetensors")
    assert tensors["blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert not list(straight.rglob("*.part"))


def test_a_stopped_run_continues_with_the_same_numbers(straight, tmp_path):
    workdir = tmp_path / "run"
    assert command.main(arguments(workdir, "--config.train.stop_at=2")) == 0
    assert [line["step"] for line in history.reproducible(workdir)] == [0, 1, 2]
    assert command.main(arguments(workdir)) == 0
    assert history.reproducible(workdir) == history.reproducible(straight)


def test_devices_that_cut_the_crops_train_nearly_the_same(straight, tmp_path):
    workdir = tmp_path / "run"
    cut = ["--config.data.augment_on=device", "--config.data.canvas=256"]
    assert command.main(arguments(workdir, *cut, "--config.train.stop_at=2")) == 0
    assert (workdir / "pictures/crops.png").exists()
    losses = [
        [line["loss/total"] for line in history.reproducible(run)[1:3]]
        for run in (straight, workdir)
    ]
    # The same images, boxes and colours; crops differ by a level here and there.
    np.testing.assert_allclose(*losses, rtol=5e-3)


def test_a_finished_run_started_again_stays_as_it_is(straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    assert command.main(arguments(workdir)) == 0
    assert history.reproducible(workdir) == history.reproducible(straight)


def test_a_damaged_newest_checkpoint_is_passed_over(straight, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    for file in (workdir / "checkpoints/8/state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (workdir / "checkpoints/9.orbax-checkpoint-tmp").mkdir()
    assert command.main(arguments(workdir)) == 0
    assert "checkpoint 8 cannot be read" in caplog.text
    assert history.reproducible(workdir) == history.reproducible(straight)
    assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_at_once_and_says_how_to_go_on(straight, tmp_path, number):
    workdir = tmp_path / "run"
    # never ends by itself
    given = arguments(workdir, "--config.train.log_every=1", "--config.train.minutes=9")
    process = subprocess.Popen(
        [sys.executable, "-m", "dinov2_jax", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    metrics = workdir / "metrics.jsonl"
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    if "Stopped" in out:  # else the last step came first
        assert f"Stopped: {signal.Signals(number).name}. The same command" in out
    assert command.main(arguments(workdir)) == 0
    assert history.reproducible(workdir) == history.reproducible(straight)


def test_another_config_is_refused_by_name_unless_allowed(straight, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    other = arguments(workdir, "--config.optim.base_lr=0.5")
    assert command.main(other) == 1
    assert "optim.base_lr: 0.01 -> 0.5" in capsys.readouterr().err
    assert command.main([*other, "--allow-config-change"]) == 0


@pytest.mark.parametrize("kind", ["workdir", "safetensors"])
def test_a_run_can_start_from_weights_of_another_grid(straight, tmp_path, kind):
    workdir = tmp_path / "run"
    path = straight if kind == "workdir" else straight / "export/backbone.safetensors"
    given = arguments(
        workdir,
        f"--config.init.weights={path}",
        "--config.init.into=teacher",
        "--config.crops.global_size=24",
        "--config.train.steps=4",
    )
    assert command.main(given) == 0
    # the teacher's features at step 0 are those of the run it came from, but for
    # the resized position table
    first, last = history.reproducible(workdir)[0], history.reproducible(straight)[-1]
    assert abs(first["health/feature_std"] - last["health/feature_std"]) < 0.2


def test_corrupt_images_are_skipped_counted_and_named(straight, tmp_path):
    from PIL import Image

    folder, rng = tmp_path / "images", np.random.default_rng(0)
    for i in range(40):
        path = folder / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(path)
    (folder / "class0" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    workdir = tmp_path / "run"
    spec = f"folder:{folder}"
    given = arguments(
        workdir, f"--config.data.train={spec}", f"--config.data.val={spec}"
    )
    assert command.main(given) == 0
    found = history.reproducible(workdir)
    assert sum(line.get("data/skipped", 0) for line in found) >= 2
    assert "broken.jpg" in (workdir / "skipped.txt").read_text()
    assert len((workdir / "skipped.txt").read_text().splitlines()) == 1
