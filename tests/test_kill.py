"""Killed at any moment and started again, a run gives the numbers of one never killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import test_run
from PIL import Image

from dinov2_jax.train import history

STEPS = 24
RUN = [
    *test_run.TINY,
    "--config.mesh.remat=none",
    f"--config.train.steps={STEPS}",
    "--config.train.log_every=2",  # lines of the history and checkpoints at other steps
    "--config.checkpoint.every=3",
    "--config.eval.every=12",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders of noise, in which one image in twenty is corrupt."""
    folder, rng = tmp_path_factory.mktemp("kill") / "images", np.random.default_rng(0)
    for i in range(60):
        path = folder / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(path)
        if i % 20 == 7:
            path.write_bytes(path.read_bytes()[:80])
    return folder


def command(workdir: pathlib.Path, images: pathlib.Path, *more: str) -> list[str]:
    """A real training process."""
    config = pathlib.Path(__file__).parents[1] / "configs/vitl16_in1k_short.py"
    return [
        *(sys.executable, "-m", "dinov2_jax", "train"),
        *(f"--config={config}", f"--workdir={workdir}", *RUN),
        *(f"--config.data.{split}=folder:{images}" for split in ("train", "val")),
        *more,
    ]


def finish(given: list[str], **environment: str) -> str:
    """Run to the end; what it said."""
    done = subprocess.run(
        given,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def kill_after(given: list[str], workdir: pathlib.Path, step: int, pause: float):
    """Start, wait until a step is in the history and a moment more, kill -9."""
    process = subprocess.Popen(
        given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while history.last_step(workdir) < step:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory):
    """A run that was never killed."""
    workdir = tmp_path_factory.mktemp("kill") / "straight"
    finish(command(workdir, images))
    found = history.reproducible(workdir)
    assert sum(line.get("data/skipped", 0) for line in found) > 3
    return workdir


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param((0, 0, 0, 0), marks=pytest.mark.slow),
        pytest.param((2, 2, 2, 2), marks=pytest.mark.slow),
        (2, 0, 1, 2),
    ],
)
def test_three_kills_leave_no_trace_in_the_history(workers, straight, images, tmp_path):
    workdir, rng = tmp_path / "run", np.random.default_rng(sum(workers))
    steps = np.sort(rng.choice(np.arange(2, STEPS - 4, 2), 3, replace=False))
    for number, step in zip(workers, steps):
        given = command(workdir, images, f"--config.data.workers={number}")
        kill_after(given, workdir, int(step), rng.uniform(0, 0.1))
    said = finish(command(workdir, images, f"--config.data.workers={workers[-1]}"))
    assert "continuing at step" in said
    assert history.reproducible(workdir) == history.reproducible(straight)
    skipped = "skipped.txt"
    assert (workdir / skipped).read_text() == (straight / skipped).read_text()
    assert not list(workdir.rglob("*tmp*")) and not list(workdir.rglob("*.part"))


@pytest.mark.parametrize(
    ("devices", "fsdp"), [(1, 1), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_another_number_of_devices_goes_on_with_the_same_data_and_losses(
    devices, fsdp, straight, images, tmp_path
):
    workdir = tmp_path / "run"
    finish(command(workdir, images, "--config.train.stop_at=9"))
    flag = f"--xla_force_host_platform_device_count={devices}"
    given = command(workdir, images, f"--config.mesh.fsdp={fsdp}")
    finish(given, XLA_FLAGS=flag)
    got, want = history.reproducible(workdir), history.reproducible(straight)
    assert len(got) == len(want)
    for a, b in zip(got, want):
        # The data are the same: these two are counts of the batches. Losses differ by
        # the order of sums, which AdamW amplifies over 15 steps.
        assert a["step"] == b["step"] and a.get("data/skipped") == b.get("data/skipped")
        if "loss/total" in b:
            assert abs(a["loss/total"] - b["loss/total"]) < 2e-3 * b["loss/total"]


def test_workers_end_with_a_parent_that_is_killed(images):
    code = f"""
import multiprocessing, time
from dinov2_jax.data import draws, pipeline, sources
if __name__ == "__main__":
    batches = pipeline.train_batches(
        sources.open_source("folder:{images}"),
        multicrop=draws.MultiCrop(global_size=16, local_size=8),
        patch_size=4, mask_probability=0.5, mask_ratio=(0.1, 0.5), seed=0,
        batch_size=2, group_size=2, start=0, stop=1000, workers=2,
    )
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""
    script = images.parent / "workers.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2 and all(alive(pid) for pid in workers)
    process.kill()
    process.wait()
    until = time.monotonic() + 60  # a bound, not a measurement
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return state[0] != "Z"
