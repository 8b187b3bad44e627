"""What a run writes while it goes: metrics.jsonl, TensorBoard, the progress line."""

import importlib.util
import io
import json
import os

import pytest

from dinov2_jax.train import history, progress


def steps(folder) -> list[int]:
    """The steps of metrics.jsonl."""
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_every_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = history.History(tmp_path, 0)
    log.write(0, {"knn/top1": 0.25})
    log.write(5, {"loss/total": 3.5, "data/skipped": 2})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 0, "knn/top1": 0.25},
        {"step": 5, "loss/total": 3.5, "data/skipped": 2},
    ]
    assert log.lines == text.splitlines()
    log.close()


def test_what_is_not_finite_is_null_so_that_any_reader_can_read(tmp_path):
    log = history.History(tmp_path, 0)
    log.write(1, {"a": float("nan"), "b": float("-inf"), "c": 1.0})
    log.close()

    def refuse(word):
        raise AssertionError(word)

    text = (tmp_path / "metrics.jsonl").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found == {"step": 1, "a": None, "b": None, "c": 1.0}


def test_a_continued_run_drops_lines_after_its_checkpoint(tmp_path):
    log = history.History(tmp_path, 0)
    for step in range(1, 8):
        log.write(step, {"x": float(step)})
        if step == 5:
            kept = list(log.lines)  # what the checkpoint of step 5 holds
    log.close()
    again = history.History(tmp_path, 5, kept)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    again.write(6, {"x": 6.0})
    again.close()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    earlier = history.History(tmp_path, 3, again.lines)
    assert steps(tmp_path) == [1, 2, 3]
    earlier.close()


def test_a_new_run_starts_an_empty_history(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
    history.History(tmp_path, 0).close()
    assert steps(tmp_path) == []


def test_a_restart_that_dies_leaves_the_old_history_whole(tmp_path, monkeypatch):
    log = history.History(tmp_path, 0)
    log.write(1, {})
    log.close()

    def full(source, target):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="disk full"):
            history.History(tmp_path, 1, log.lines)
    assert steps(tmp_path) == [1]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="extra not installed"
)
def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboardX.proto import event_pb2

    log = history.History(tmp_path, 0)
    log.write(3, {"loss/total": 2.5})
    log.close()
    files = list((tmp_path / "tensorboard").iterdir())
    data = b"".join(path.read_bytes() for path in files)
    found, at = [], 0
    while at < len(data):  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        at += 16 + size
    assert (3, "loss/total", 2.5) in found


def test_a_process_that_writes_nothing_keeps_the_lines():
    log = history.Silent(["a"])
    log.write(1, {"x": 1.0})
    log.close()
    assert log.lines == ["a"]


class Terminal(io.StringIO):
    """Text that is shown on a terminal."""

    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_are_plain_lines_only():
    out = io.StringIO()
    shown = progress.Progress(0, 20, out)
    for step in range(1, 5):
        shown.update(step)
    assert out.getvalue() == ""
    shown.show(5, "loss 1.0000")
    shown.say("saved")
    first, second = out.getvalue().splitlines()
    assert first.startswith("step 5/20  ") and first.endswith(" left  loss 1.0000")
    assert second == "saved"
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_on_a_terminal_the_bar_is_redrawn_in_place_and_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    shown = progress.Progress(0, 4, out)
    shown.show(2, "loss 1.0  " + "x" * 80)
    shown.update(4)
    assert "\n" not in out.getvalue()
    drawn = out.getvalue().split("\r\x1b[K")[1:]
    assert [len(line) for line in drawn] == [59, 59]
    assert drawn[0].startswith("[############............] step 2/4")
    assert drawn[1].startswith("[########################] step 4/4")
    shown.say("done")
    assert out.getvalue().endswith("\r\x1b[Kdone\n")


def test_the_time_left_follows_from_the_steps_of_this_start(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    shown = progress.Progress(90, 190, out)
    shown.show(90, "")
    clock[0] += 50.0
    shown.show(100, "")
    clock[0] += 3600.0 * 9
    shown.show(190, "")
    left = [line.split("  ")[1] for line in out.getvalue().splitlines()]
    # 5 seconds a step for 90 more; steps of an earlier start do not count.
    assert left == ["? left", "0:07:30 left", "0:00:00 left"]


def test_other_processes_print_nowhere():
    shown = progress.Progress(0, 2, progress.NOWHERE)
    shown.show(1, "x")
    shown.say("y")
    assert progress.NOWHERE.getvalue() == ""
