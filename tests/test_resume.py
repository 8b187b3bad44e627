"""Which checkpoint a run continues from, when reading fails, and which are kept."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
import test_checkpoint
import test_run

from dinov2_jax import __main__ as command
from dinov2_jax import checkpoint, processes, resume
from dinov2_jax.train import history

straight = test_run.straight  # the fixture: a run that was never stopped
whole = test_checkpoint.whole  # the fixture: checkpoints of steps 2, 4 and 6


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of the checkpoints."""
    return pathlib.Path(shutil.copytree(whole, tmp_path / "checkpoints"))


def failing(monkeypatch, step: int, times: int, error: Exception) -> list[float]:
    """Reads of a step's state fail so many times; returns the pauses, as they come."""
    read, left, pauses = ocp.PyTreeCheckpointHandler.restore, [times], []

    def restore(self, path, *args, **options):
        if path.parent.name == str(step) and left[0]:
            left[0] -= 1
            raise error
        return read(self, path, *args, **options)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", restore)
    monkeypatch.setattr(resume.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        TimeoutError("slow"),
        ValueError("UNAVAILABLE: try later"),
        ValueError("INTERNAL: reading x [OS error 116: ESTALE Stale file handle]"),
        FileNotFoundError(2, "not there yet"),
    ],
)
def test_a_read_that_fails_is_tried_again_and_costs_no_checkpoint(
    error, folder, monkeypatch
):
    pauses = failing(monkeypatch, 6, 1, error)
    assert test_checkpoint.found(folder) == 6
    assert len(pauses) == 1
    assert checkpoint.steps(folder) == [2, 4, 6]


def test_storage_that_goes_on_failing_ends_the_run_and_leaves_the_checkpoint(
    folder, monkeypatch
):
    pauses = failing(monkeypatch, 6, 99, PermissionError(13, "Permission denied"))
    with (
        checkpoint.manager(folder, keep=3) as checkpoints,
        pytest.raises(OSError, match=r"6 cannot be read .*Permission denied"),
    ):
        resume.newest(checkpoints, test_checkpoint.SHAPES)
    assert pauses == [0.5, 1.0, 2.0]
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4", "6"]


def test_what_is_corrupt_is_renamed_and_its_step_can_be_saved_again(folder, caplog):
    for step in (4, 6):
        for path in (folder / str(step) / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:7])
    (folder / "corrupt-6").mkdir()  # of an earlier time
    with checkpoint.manager(folder, keep=3) as checkpoints:
        step, _, _ = resume.newest(checkpoints, test_checkpoint.SHAPES)
        assert step == 2
        state = test_checkpoint.state(4)
        checkpoint.save(checkpoints, 4, state, {"next_step": 4})
    assert test_checkpoint.found(folder) == 4
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["2", "4", "corrupt-4", "corrupt-6", "corrupt-6-2"]
    assert any((folder / "corrupt-6-2" / "state").iterdir())
    assert f"the corrupt checkpoint 6 is now {folder}/corrupt-6-2" in caplog.text


def test_where_none_can_be_read_all_stay_where_they_are(folder):
    for path in folder.glob("*/note/metadata"):
        path.write_text("{")
    assert "[6, 4, 2]" in str(test_checkpoint.found(folder))
    assert checkpoint.steps(folder) == [2, 4, 6]


CODE = """
import pathlib, shutil, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import orbax.checkpoint as ocp
from dinov2_jax import __main__ as command, checkpoint, processes, resume

case, folder, own = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
read, left = ocp.PyTreeCheckpointHandler.restore, [1 if case == "once" else 99]
error = OSError(5, "Input/output error")
if case == "corrupt":  # what process 1 reads, and it alone
    error = ValueError("DATA_LOSS: a checksum differs")
resume.WAIT = 0.01

def restore(self, path, *args, **options):
    if own == 1 and path.parent.name == "2" and left[0]:
        left[0] -= 1
        raise error
    return read(self, path, *args, **options)

ocp.PyTreeCheckpointHandler.restore = restore

def main(given):
    processes.start()
    mesh = Mesh(np.array(jax.devices()), "x")
    rows = NamedSharding(mesh, PartitionSpec("x"))
    with checkpoint.manager(folder, keep=3) as checkpoints:
        for step in (1, 2):
            value = np.full(4, step, np.float32)
            array = jax.make_array_from_callback((4,), rows, lambda i: value[i])
            checkpoint.save(checkpoints, step, {"w": array}, {"next_step": step})
        checkpoints.wait_until_finished()
    with checkpoint.manager(folder, keep=3) as checkpoints:
        shapes = {"w": jax.ShapeDtypeStruct((4,), np.float32, sharding=rows)}
        step, state, note = resume.newest(checkpoints, shapes)
        local = np.concatenate([s.data for s in state["w"].addressable_shards])
        print(f"step {step} {note['next_step']} {set(local.tolist())}", flush=True)
    return 0

sys.modules["dinov2_jax.cli.train"] = type(sys)("train")
sys.modules["dinov2_jax.cli.train"].main = main
sys.exit(command.main(["train"]))
"""


@pytest.mark.parametrize("case", ["once", "never", "corrupt"])
def test_two_processes_restore_the_same_step_or_end_together(case, tmp_path):
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    flag = "--xla_force_host_platform_device_count=2"
    run = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, case, str(tmp_path / "c"), str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ
            | {"XLA_FLAGS": flag}
            | dict(zip(processes.KEYS, (address, "2", str(index)))),
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in run]
    codes = [process.returncode for process in run]
    names = sorted(p.name for p in (tmp_path / "c").iterdir())
    if case == "never":
        assert codes == [1, 1], said
        assert any("cannot be read on process 1 (" in text for text in said)
        assert all("process 1" in text for text in said), said
        assert not any("Traceback" in text for text in said), said
        assert names == ["1", "2"]
        return
    assert codes == [0, 0], said
    step = {"once": 2, "corrupt": 1}[case]
    assert all(f"step {step} {step} {{{step}.0}}" in text for text in said), said
    assert names == {"once": ["1", "2"], "corrupt": ["1", "corrupt-2"]}[case]


def best_of(workdir: pathlib.Path) -> tuple[int, float]:
    """(step, accuracy) of the best evaluation in a run's history, the first of equals."""
    lines = history.reproducible(workdir)
    known = {x["step"]: x["knn/top1"] for x in lines if "knn/top1" in x}
    return max(known.items(), key=lambda item: (item[1], -item[0]))


# Evaluations at 0, 3, 6 and 8, checkpoints at 5 and 8.
APART = ["--config.eval.every=3", "--config.checkpoint.every=5"]


def test_the_best_evaluated_teacher_is_kept_whenever_it_was_evaluated(
    tmp_path, straight
):
    workdir = tmp_path / "run"
    given = test_run.arguments(workdir, *APART, "--config.checkpoint.keep=1")
    assert command.main([*given, "--config.train.stop_at=4"]) == 0
    assert command.main(given) == 0
    folder, (_, top1) = workdir / "checkpoints", best_of(workdir)
    best = checkpoint.best_step(folder)
    assert checkpoint.accuracies(folder)[best] == top1
    assert checkpoint.steps(folder) == sorted({best, 8})
    teacher = checkpoint.load_params(folder, step=best)
    newest = checkpoint.load_params(folder)
    same = np.array_equal(*(x["backbone"]["cls_token"] for x in (teacher, newest)))
    assert same == (best == 8)
    with pytest.raises(ValueError, match="holds no checkpoint of step 7"):
        checkpoint.load_params(folder, step=7)


def test_each_new_best_is_saved_and_a_resumed_run_knows_the_best(
    tmp_path, monkeypatch, straight
):
    scores = iter([0.2, 0.5, 0.4, 0.4, 0.3])  # at 0, 2, 4; resumed: at 6, 8
    measure = command.importlib.import_module("dinov2_jax.cli.probes").TeacherProbe
    monkeypatch.setattr(
        measure, "measure", lambda self, state: {"knn/top1": next(scores)}
    )
    workdir = tmp_path / "run"
    given = test_run.arguments(
        workdir,
        "--config.eval.every=2",
        "--config.checkpoint.every=0",
        "--config.checkpoint.keep=9",
    )
    assert command.main([*given, "--config.train.stop_at=5"]) == 0
    folder = workdir / "checkpoints"
    assert checkpoint.steps(folder) == [0, 2, 5]
    assert command.main(given) == 0
    assert checkpoint.steps(folder) == [0, 2, 5, 8]
    assert checkpoint.best_step(folder) == 2
    assert [x["step"] for x in history.reproducible(workdir)] == list(range(9))


def test_checkpoints_without_an_accuracy_have_no_best(whole, tmp_path):
    assert checkpoint.best_step(whole) is None
    assert checkpoint.best_step(tmp_path / "none") is None


def test_a_run_killed_after_its_first_evaluation_resumes_from_step_zero(tmp_path):
    workdir = tmp_path / "run"
    given = test_run.arguments(workdir, "--config.train.steps=2")
    with pytest.MonkeyPatch.context() as patch:
        loop = command.importlib.import_module("dinov2_jax.train.loop")

        def killed(batches):
            raise KeyboardInterrupt

        patch.setattr(loop, "next", killed, raising=False)
        assert command.main(given) == 130
    assert checkpoint.steps(workdir / "checkpoints") == [0]
    before = history.reproducible(workdir)
    assert command.main(given) == 0
    after = history.reproducible(workdir)
    assert after[:1] == before and [x["step"] for x in after] == [0, 1, 2]


def test_a_workdir_whose_checkpoints_are_gone_is_refused_unless_restarted(
    straight, tmp_path, capsys, told
):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "checkpoints")
    files = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    given = test_run.arguments(workdir)
    capsys.readouterr()
    for _ in range(2):
        assert command.main(given) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "step 8" in said and "--restart" in said and str(workdir) in said
        assert files == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    told("checkpoints that are gone", said)
    again = [*given, "--restart"]
    assert command.main([*again, "--config.train.stop_at=3"]) == 0
    kept = workdir / "metrics.previous.jsonl"
    assert kept.read_bytes() == files[workdir / "metrics.jsonl"]
    assert command.main(again) == 0  # resumes: there are checkpoints
    assert "continuing at step 3" in capsys.readouterr().err
    assert history.reproducible(workdir) == history.reproducible(straight)
    assert json.loads((workdir / "run.json").read_text())["saved"] == 8


def test_a_run_killed_before_its_first_checkpoint_begins_again_by_itself(
    straight, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    # As a kill while the first checkpoint gets its name leaves it.
    about = json.loads((workdir / "run.json").read_text())
    (workdir / "run.json").write_text(json.dumps(about | {"saved": 3}))
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints/3.orbax-checkpoint-tmp").mkdir(parents=True)
    lost = (workdir / "metrics.jsonl").read_text()
    assert command.main(test_run.arguments(workdir)) == 0
    assert "metrics.previous.jsonl" in capsys.readouterr().err
    assert (workdir / "metrics.previous.jsonl").read_text() == lost
    assert history.reproducible(workdir) == history.reproducible(straight)
