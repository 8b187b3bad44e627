"""One step: what it changes, what it refuses, and that it learns."""

import functools

import jax
import numpy as np
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


def test_the_loop_names_step_and_terms_that_are_not_finite():
    terms = {"health/rejected": np.int32(2), "loss/ibot": np.float32("nan")}
    try:
        loop._refuse_rejected(7, terms, 2)
    except loop.NotFinite as error:
        assert "Step 7" in str(error) and "loss/ibot=nan" in str(error)
    else:
        raise AssertionError("two rejected steps in a row must end the run")
    loop._refuse_rejected(7, terms, 3)
