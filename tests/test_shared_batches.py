"""Linear heads learn from batches of one size, whatever the number of devices."""

import functools

import densefiles
import jax
import numpy as np
import pytest

from dinov2_jax import sharding
from dinov2_jax.cli import evaluate_linear
from dinov2_jax.data import labelled, sources

SETTINGS = {
    "resize": 32,
    "crop": 32,
    "batch_size": 8,
    "limit": 28,
    "blocks": (1,),
    "steps": 3,
    "rates": (8.0,),
    "train_batch": 16,
    "log_every": 99,
}
SPECS = ("demo:train", "demo:val")


@pytest.mark.parametrize("augment", [False, True])
def test_one_device_trains_the_heads_of_eight(augment, tmp_path, monkeypatch):
    backbone, heads = densefiles.backbone(depth=1), []
    for count in (8, 1):
        some = functools.partial(sharding.make_mesh, devices=jax.devices()[:count])
        monkeypatch.setattr(evaluate_linear.sharding, "make_mesh", some)
        out = tmp_path / str(count)
        settings = SETTINGS | {"augment": augment}
        job = densefiles.job(evaluate_linear, backbone, SPECS, out, **settings)
        out.mkdir()
        assert evaluate_linear.run(job).data["train"]["images"] == 28
        heads.append(np.load(out / "head.npz"))
    assert heads[0]["kind"] == heads[1]["kind"]
    for name in ("kernel", "bias"):  # sums over devices are rounded in another order
        np.testing.assert_allclose(heads[0][name], heads[1][name], rtol=1e-3, atol=1e-5)


def test_views_are_of_the_images_that_a_limit_leaves(tmp_path, monkeypatch):
    make, seen = labelled.train_batches, []

    def spied(source, **options):
        seen.append([source.name(i) for i in range(len(source))])
        return make(source, **options)

    monkeypatch.setattr(labelled, "train_batches", spied)
    backbone = densefiles.backbone(depth=1)
    job = densefiles.job(evaluate_linear, backbone, SPECS, tmp_path, **SETTINGS)
    evaluate_linear.run(job)
    whole = sources.open_source(SPECS[0])
    assert seen == [[whole.name(i * len(whole) // 28) for i in range(28)]]


def test_the_default_is_the_references_batch_of_eight_devices():
    assert evaluate_linear.SETTINGS["train_batch"] == 8 * 128


def test_devices_that_cannot_share_a_batch_are_told_before_features_are_made(tmp_path):
    settings = SETTINGS | {"train_batch": 12}
    backbone = densefiles.backbone(depth=1)
    job = densefiles.job(evaluate_linear, backbone, SPECS, tmp_path, **settings)
    with pytest.raises(ValueError, match="train_batch=12 does not divide over 8 dev"):
        evaluate_linear.run(job)
    assert not job.cache.exists()
