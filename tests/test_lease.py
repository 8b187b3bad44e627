"""One writer at a time in a folder, and no lock that outlives a killed one."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import test_run
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax import lease
from dinov2_jax.train import history

HOLDER = """
import sys, time
from dinov2_jax import lease
with lease.held(sys.argv[1], "--out"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lease of tmp_path / "out"; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "out"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_by_name_and_leaves_no_trace(holder, tmp_path):
    out = tmp_path / "out"
    before = (out / lease.NAME).read_bytes()
    said = f"--out=.*in use by process {holder.pid} on "
    with pytest.raises(ValueError, match=said), lease.held(out, "--out"):
        pass
    assert [path.name for path in out.iterdir()] == [lease.NAME]
    assert (out / lease.NAME).read_bytes() == before


@pytest.mark.parametrize("reaped", [True, False])
def test_a_lease_of_a_killed_process_is_void_at_once(holder, reaped, tmp_path):
    holder.kill()
    if reaped:
        holder.wait()
    else:  # it has ended, and its parent has not asked
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / "out" / lease.NAME).exists()
    with lease.held(tmp_path / "out", "--out"):
        pass
    assert not list((tmp_path / "out").iterdir())


def test_a_number_that_another_process_has_got_is_not_the_holder(holder, tmp_path):
    path = tmp_path / "out" / lease.NAME
    old = json.loads(path.read_text()) | {"began": "1"}
    path.write_text(json.dumps(old))
    with lease.held(tmp_path / "out", "--out"):
        assert json.loads(path.read_text())["process"] == os.getpid()


def elsewhere(folder: pathlib.Path, age: float) -> pathlib.Path:
    """A lease of another machine, renewed so many seconds ago."""
    folder.mkdir()
    path = folder / lease.NAME
    path.write_text(
        json.dumps({"host": "node7", "machine": "node7", "process": 1, "began": "9"})
    )
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_lease_of_another_machine_lapses_without_heartbeats(
    tmp_path, monkeypatch, capsys
):
    elsewhere(tmp_path / "old", lease.LAPSE + 5)
    with lease.held(tmp_path / "old", "--out"):
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(lease, "LAPSE", 0.4)
    elsewhere(tmp_path / "new", 0)
    with lease.held(tmp_path / "new", "--out"):
        assert "in use on node7" in capsys.readouterr().err


def test_a_lease_of_another_machine_that_is_renewed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.2)
    path, done = elsewhere(tmp_path / "out", 5), threading.Event()

    def beat():
        while not done.wait(0.02):
            os.utime(path)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        said = "process 1 on node7"
        with pytest.raises(ValueError, match=said), lease.held(path.parent, "--out"):
            pass
    finally:
        done.set()
        beating.join()


def test_heartbeats_renew_the_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.02)
    with lease.held(tmp_path, "--out"):
        path = tmp_path / lease.NAME
        os.utime(path, (0, 0))
        until = time.monotonic() + 60  # a bound, not a measurement
        while not path.stat().st_mtime and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime


def test_of_many_that_begin_at_once_one_holds(tmp_path):
    code = """
import sys, time
from dinov2_jax import errors, lease
try:
    with lease.held(sys.argv[1], "--out"):
        print("held", flush=True)
        sys.stdin.read()
except errors.InputError:
    print("refused", flush=True)
"""
    run = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    said = sorted(process.stdout.readline() for process in run)
    for process in run:
        process.communicate()
    assert said == ["held\n"] + ["refused\n"] * 4


def test_a_second_run_in_a_workdir_is_refused_and_a_killed_one_resumes(tmp_path, told):
    workdir = tmp_path / "run"
    given = test_run.arguments(
        workdir,
        "--config.eval.every=0",
        "--config.data.val=",
        "--config.train.steps=9999",
    )
    start = [sys.executable, "-m", "dinov2_jax"]
    run = subprocess.Popen([*start, *given], stderr=subprocess.DEVNULL)
    while history.last_step(workdir) < 4:
        assert run.poll() is None
        time.sleep(0.02)
    second = subprocess.run(
        [*start, *given], capture_output=True, text=True, check=False
    )
    assert second.returncode == 1 and second.stderr.count("\n") == 1, second.stderr
    assert f"in use by process {run.pid}" in second.stderr
    told("a workdir in use", second.stderr.strip())
    run.send_signal(signal.SIGKILL)
    run.wait()
    last = subprocess.run(
        [*start, *given, "--config.train.minutes=1e-9"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert last.returncode == 0, last.stderr
    assert "continuing at step" in last.stderr
    assert not (workdir / lease.NAME).exists()


def test_other_commands_refuse_a_folder_in_use(holder, tmp_path, capsys, told):
    images = tmp_path / "images"
    for i in range(4):
        path = images / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (i, 0, 0)).save(path)
    out = tmp_path / "out"
    assert command.main(["data", "pack", f"folder:{images}", str(out)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"in use by process {holder.pid}" in said
    told("a folder of shards in use", said)
    assert [path.name for path in out.iterdir() if path.is_file()] == [lease.NAME]
