"""Steps without a masked patch: the DINO-only ablation has the loss without iBOT."""

import jax
import numpy as np
import pytest
import tiny

from dinov2_jax import sharding
from dinov2_jax.cli import assemble
from dinov2_jax.data.batch import normalize
from dinov2_jax.train import losses

NOTHING = [
    {"masks__probability": "0.0"},
    {"masks__ratio": "(0.0, 0.0)"},
    {"masks__probability": "0.2"},  # of the four crops of a group: none
    {"masks__ratio": "(0.0, 0.05)"},  # of the sixteen patches of a crop: none
]
"""Settings by which no patch is masked."""

CASES = [
    pytest.param(targets, devices, fsdp, overrides, id=f"{targets}-{devices}-{fsdp}")
    for targets, devices, fsdp, overrides in (
        ("sinkhorn", 1, 1, {"loss__ibot_weight": "0.0"}),
        ("sinkhorn", 8, 4, {"head__separate": "true"}),
        ("sinkhorn", 8, 1, {"train__accumulate": "2", "train__batch_size": "32"}),
        ("centering", 8, 4, {}),
        (
            "centering",
            1,
            1,
            {
                "train__accumulate": "2",
                "head__separate": "true",
                "loss__ibot_weight": "0.0",
            },
        ),
        ("none", 1, 1, {}),
    )
]


def mesh(devices: int, fsdp: int) -> jax.sharding.Mesh:
    """That many of the virtual devices."""
    return sharding.make_mesh(fsdp, jax.devices()[:devices])


def expected(config, batch) -> float:
    """DINO and KoLeo of the first step, from the networks' outputs alone."""
    model = assemble.model(config)
    params = tiny.prepared(config, mesh(1, 1))[0].params
    crops = [normalize(x) for x in (batch.global_crops, batch.local_crops)]
    shown = np.zeros((batch.masks.shape[0] // config.train.group_size, 1), np.int32)
    out = model.apply(
        {"params": params}, *crops, batch.masks & False, shown, method="student"
    )
    logits = model.apply({"params": params}, crops[0], shown, method="teacher")
    temp = config.teacher.warmup_temp
    if config.loss.targets == "sinkhorn":
        targets = losses.sinkhorn_targets(logits.cls_logits, temp)
    else:
        targets = losses.centered_targets(logits.cls_logits, 0.0, temp)
    groups = out.cls.reshape(len(shown), -1, *out.cls.shape[1:])
    koleo = sum(losses.koleo(groups[:, :, view]).mean() for view in range(2))
    dino = losses.dino_pairs(out.cls_logits, targets).sum()
    return float(dino + config.loss.koleo_weight * koleo)


@pytest.mark.parametrize(("targets", "devices", "fsdp", "overrides"), CASES)
def test_the_loss_of_a_step_without_masks_is_that_of_dino(
    targets, devices, fsdp, overrides
):
    config = tiny.config(loss__targets=targets, masks__probability="0.0", **overrides)
    assert tiny.batch(config, 0).mask_indices.shape[1] == 0
    state, metrics = tiny.train(config, mesh(devices, fsdp), 2)
    want = expected(config, tiny.batch(config, 0))
    # float32 sums over images and devices in another order
    np.testing.assert_allclose(metrics[0]["loss/total"], want, rtol=2e-5)
    assert metrics[0].get("loss/ibot", 0) == 0
    for name, value in metrics[1].items():
        assert np.isfinite(value), name
    assert not any(name.endswith("_ibot") for name in metrics[1])
    assert not np.asarray(state.centers.ibot).any()


@pytest.mark.parametrize("overrides", NOTHING, ids=str)
def test_masks_of_no_patch_are_no_masks(overrides):
    config = tiny.config(loss__targets="sinkhorn", **overrides)
    batch = tiny.batch(config, 0)
    assert not batch.masks.any() and not batch.mask_weights.any()
    _, (terms,) = tiny.train(config, mesh(1, 1), 1)
    want = expected(config, batch)
    np.testing.assert_allclose(terms["loss/total"], want, rtol=2e-5)  # as above


def test_a_group_without_masked_patches_does_not_move_the_center():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5)).astype(np.float32)
    weights = np.array([[0.5, 0.5, 0, 0], [0] * 4, [1, 0, 0, 0]], np.float32)
    mean = losses.mean_patch_logits(logits, weights)
    want = (logits[0, :2].mean(0) + logits[2, 0]) / 2
    np.testing.assert_allclose(mean, want, rtol=1e-6)  # float32
    center = rng.normal(size=5).astype(np.float32)
    same = losses.mean_patch_logits(logits, weights * 0, center)
    np.testing.assert_array_equal(same, center)
