"""Runs of several real processes: their numbers are those of one, whatever happens."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import test_run

from dinov2_jax import processes
from dinov2_jax.train import history

DEVICES = 4  # of a run, over all of its processes
PATIENCE = 60  # seconds; a lost process is noticed in less than one, on an idle machine
MORE = ["--config.eval.every=0", "--config.data.val=", "--config.checkpoint.every=2"]


def started(workdir, number: int, *more: str, devices: int = DEVICES) -> list:
    """The processes of a run, that share so many devices."""
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    flag = f"--xla_force_host_platform_device_count={devices // number}"
    found = []
    for index in range(number):
        environment = os.environ | {"XLA_FLAGS": flag}
        if number > 1:
            environment |= dict(zip(processes.KEYS, (address, str(number), str(index))))
        given = test_run.arguments(workdir, *MORE, *more)
        found.append(
            subprocess.Popen(
                [sys.executable, "-m", "dinov2_jax", *given],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
            )
        )
    return found


def scripted(code: str, number: int) -> list:
    """The processes of a script, each of which is told its index."""
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    keys = processes.KEYS
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | dict(zip(keys, (address, str(number), str(index)))),
        )
        for index in range(number)
    ]


def finished(run: list) -> list[tuple[int, str]]:
    """(exit code, what it said) of every process."""
    said = [process.communicate()[0] for process in run]
    return [(process.returncode, text) for process, text in zip(run, said)]


def await_step(workdir, run: list, step: int) -> None:
    """Return when a step is in the history."""
    while history.last_step(workdir) < step:
        assert all(process.poll() is None for process in run), finished(run)
        time.sleep(0.01)


def assert_alike(workdir, straight) -> None:
    """The histories of two runs are the same but for rounding."""
    got, want = history.reproducible(workdir), history.reproducible(straight)
    assert [line["step"] for line in got] == [line["step"] for line in want]
    for a, b in zip(got, want):
        assert a["data/skipped"] == b["data/skipped"]
        # Other orders of float32 sums, which AdamW amplifies after the first step.
        near = 1e-5 if a["step"] == 1 else 2e-3
        assert abs(a["loss/total"] - b["loss/total"]) <= near * b["loss/total"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of one process that nothing happened to."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    assert finished(started(workdir, 1))[0][0] == 0
    return workdir


@pytest.mark.slow
def test_two_processes_end_together_and_go_on_to_the_numbers_of_one(straight, tmp_path):
    workdir = tmp_path / "run"
    run = started(workdir, 2)
    await_step(workdir, run, 1)
    run[1].send_signal(signal.SIGTERM)  # one is told to end: all save
    (code, first), (other, second) = finished(run)
    assert (code, other) == (0, 0), first + second
    assert "2 processes, found by variables" in first and "Stopped: " in first
    run = started(workdir, 2)
    await_step(workdir, run, 4)
    run[1].kill()  # one is lost: the other says so and ends
    began = time.monotonic()
    (code, said), _ = finished(run)
    assert time.monotonic() - began < PATIENCE
    assert code == 1, said
    assert "continuing at step" in said and "process 1 of 2 was lost" in said
    assert all(code == 0 for code, _ in finished(started(workdir, 2)))
    assert_alike(workdir, straight)


@pytest.mark.slow
def test_four_processes_have_the_numbers_of_one(straight, tmp_path):
    workdir = tmp_path / "run"
    assert all(code == 0 for code, _ in finished(started(workdir, 4)))
    assert_alike(workdir, straight)


@pytest.mark.slow
def test_all_others_end_when_the_first_process_is_lost(tmp_path):
    run = started(tmp_path / "run", 4)
    await_step(tmp_path / "run", run, 1)
    run[0].kill()
    for index, (code, said) in enumerate(finished(run)[1:], 1):
        assert code == 1 and "process 0 of 4 was lost" in said, f"{index}: {said}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "devices", "fsdp"), [(1, 1, 1), (1, 8, 2), (2, 4, 2)]
)
def test_a_checkpoint_of_two_rings_goes_on_elsewhere(
    number, devices, fsdp, straight, tmp_path
):
    workdir = tmp_path / "run"
    rings = ("--config.mesh.fsdp=4", "--config.train.stop_at=4")
    assert finished(started(workdir, 1, *rings, devices=8))[0][0] == 0
    last = ("--allow-config-change", f"--config.mesh.fsdp={fsdp}")
    for code, said in finished(started(workdir, number, *last, devices=devices)):
        assert code == 0, said
    assert_alike(workdir, straight)


def test_an_error_of_one_process_is_told_by_the_others(tmp_path):
    code = """
import sys
from dinov2_jax import processes
processes.start()
if sys.argv[1] == "1":
    raise RuntimeError("the disk is on fire")
import time
time.sleep(60)
"""
    (code, told), (other, said) = finished(scripted(code, 2))
    assert code == 1 and other == 1
    assert "Traceback" in said and "the disk is on fire" in said
    assert "process 1 of 2 ended: RuntimeError: the disk is on fire" in told
