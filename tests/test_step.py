"""One step: what it changes, what it refuses, and that it learns."""

import functools
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from dinov2_jax import sharding
from dinov2_jax.train import loop


def one_device():
    """A mesh of the first device."""
    return sharding.make_mesh(1, jax.devices()[:1])


def test_the_loss_falls_on_a_repeated_batch(monkeypatch):
    config = tiny.config(train__steps="40", loss__targets="sinkhorn", seed="1")
    first = functools.partial(tiny.batch, seed=0)
    monkeypatch.setattr(tiny, "batch", lambda c, number: first(c))
    _, metrics = tiny.train(config, one_device(), 30)
    losses = [float(m["loss/total"]) for m in metrics]
    assert losses[-1] < losses[0] - 0.5
    assert all(np.isfinite(list(m.values())).all() for m in metrics)


@pytest.mark.slow
def test_packing_changes_no_number():
    steps = [
        tiny.train(tiny.config(mesh__packed=packed), one_device(), 2)[1]
        for packed in ("true", "false")
    ]
    for a, b in zip(*steps, strict=True):
        for name in a:
            # Sums run in another order; after a step Adam divides small by small.
            np.testing.assert_allclose(a[name], b[name], rtol=2e-3, err_msg=name)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(monkeypatch):
    config = tiny.config()
    real = tiny.batch

    def spoiled(c, number):
        good = real(c, number)
        crops = np.asarray(good.global_crops, np.float32)
        local = np.asarray(good.local_crops, np.float32)
        if number:
            crops[0] = np.nan
        return good.replace(global_crops=crops / 255, local_crops=local / 255)

    monkeypatch.setattr(tiny, "batch", spoiled)
    before, _ = tiny.train(config, one_device(), 1)
    after, metrics = tiny.train(config, one_device(), 3)
    assert int(after.step) == 3 and int(after.rejected) == 2
    assert not np.isfinite(metrics[1]["loss/total"])
    for part in ("params", "teacher", "centers", "opt_state"):
        same = jax.tree.map(
            lambda a, b: bool((a == b).all()),
            getattr(before, part),
            getattr(after, part),
        )
        assert jax.tree.all(same), part


def guarded(most: int):
    """A guard, its tally, and what it was asked to keep."""
    kept, tally = [], loop.Tally()

    def keep(step, state, batch):
        kept.append((step, state, batch))
        return "It is kept."

    return loop.Guard(most, keep, tally), tally, kept


def terms(rejected: int) -> dict:
    """Metrics of a step, as far as the guard reads them."""
    loss = np.float32("nan") if rejected else np.float32(1)
    return {"health/rejected": np.int32(rejected), "loss/ibot": loss}


def test_the_loop_names_step_and_terms_that_are_not_finite_a_step_late():
    guard, tally, kept = guarded(2)
    for step, rejected in enumerate((0, 1, 2), 1):
        guard.add(f"state {step}", step, terms(rejected), f"batch {step}")
    with pytest.raises(loop.NotFinite, match=r"Step 3.*loss/ibot=nan.*It is kept"):
        guard.add("state 4", 4, terms(3), "batch 4")
    # the state of now, which has not changed since, with the batch of the step
    assert kept == [(3, "state 4", "batch 3")]
    assert tally.rejected == 2


def test_rejected_steps_are_counted_between_two_lines_of_the_history():
    guard, tally, kept = guarded(3)
    for step, rejected in enumerate((1, 2, 0, 1), 1):
        guard.add(None, step, terms(rejected), None)
    guard.finish(None)
    guard.finish(None)
    tally.skipped, tally.retries = 5, 2
    names = ("health/rejected", "data/skipped", "data/retries")
    assert tally.read() == dict(zip(names, (3, 5, 2), strict=True))
    assert tally.read() == dict.fromkeys(names, 0)
    assert not kept


def test_a_run_stops_at_a_step_and_does_none_beyond_it():
    stop = loop.Stop(at=4)
    assert [stop(done) for done in (0, 3)] == ["", ""]
    assert stop(4) == stop(9) == "train.stop_at=4"


def test_a_run_stops_when_its_minutes_are_over():
    assert loop.Stop(minutes=60)(3) == ""
    late = loop.Stop(minutes=0.5, began=time.monotonic() - 31)
    assert late(3) == "train.minutes=0.5"


def test_a_second_signal_ends_the_process_at_once():
    code = """
import time
from dinov2_jax.train import loop
stop = loop.Stop().on_signals()
print("ready", flush=True)
while not stop(0):
    time.sleep(0.01)
print(stop(0), flush=True)
time.sleep(600)  # a step that takes long
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM


def test_processes_ask_each_other_at_the_same_steps_only():
    asked = []

    def agree(flag):
        asked.append(flag)
        return True

    stop = loop.Stop(agree=agree, every=5)
    assert [stop(done) for done in (3, 4)] == ["", ""] and not asked
    assert stop(5) == "another process ended"
    stop.signal = "SIGTERM"
    assert stop(10) == "SIGTERM" and asked == [False, True]


def test_after_too_many_rejected_steps_the_state_stays_for_who_reads_late(monkeypatch):
    config, real = tiny.config(train__max_rejected="2"), tiny.batch

    def spoiled(c, number):
        good = real(c, number)
        crops = np.asarray(good.global_crops, np.float32) / 255
        crops[0] = np.nan if number in (1, 2) else crops[0]
        local = np.asarray(good.local_crops, np.float32) / 255
        return good.replace(global_crops=crops, local_crops=local)

    monkeypatch.setattr(tiny, "batch", spoiled)
    before, _ = tiny.train(config, one_device(), 1)
    after, metrics = tiny.train(config, one_device(), 4)
    assert np.isfinite(metrics[3]["loss/total"]) and int(after.rejected) == 3
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before.params, after.params)
    assert jax.tree.all(same)
