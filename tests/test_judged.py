"""Metrics of pixels, beside those of torchmetrics."""

import numpy as np
import peers
import pytest

from dinov2_jax.evals import depth, segmentation

pytestmark = pytest.mark.torch


def test_scores_of_label_maps_are_those_of_torchmetrics():
    torch = peers.package("torch", "torch")
    judged = pytest.importorskip(
        "torchmetrics.functional.classification", reason="needs torchmetrics"
    )
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 5, (3, 40, 50))
    found = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 5))
    found = np.maximum(found, 0)
    ours = segmentation.scores(segmentation.confusion(labels, found, 5))
    told = {"num_classes": 5, "ignore_index": -1}
    pair = torch.tensor(found), torch.tensor(labels)
    index = judged.multiclass_jaccard_index
    # torchmetrics computes in float32.
    near = {"abs": 1e-6}
    each = index(*pair, average="none", **told).numpy()
    np.testing.assert_allclose(ours.iou, each, atol=1e-6)
    assert ours.miou == pytest.approx(float(index(*pair, **told)), **near)
    right = judged.multiclass_accuracy(*pair, average="micro", **told)
    assert ours.pixel_accuracy == pytest.approx(float(right), **near)
    mean = judged.multiclass_accuracy(*pair, average="macro", **told)
    assert ours.mean_accuracy == pytest.approx(float(mean), **near)


def test_errors_of_depth_maps_are_those_of_torchmetrics():
    torch = peers.package("torch", "torch")
    judged = pytest.importorskip(
        "torchmetrics.functional.regression", reason="needs torchmetrics"
    )
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.5, 9, (40, 50))
    made = np.clip(truth * rng.uniform(0.7, 1.4, truth.shape), 0.1, 10)
    ours = depth.metrics(made, truth)
    pair = torch.tensor(made.ravel()), torch.tensor(truth.ravel())
    rmse = judged.mean_squared_error(*pair, squared=False)
    assert ours["rmse"] == pytest.approx(float(rmse), rel=1e-6)
    share = judged.mean_absolute_percentage_error(*pair)
    assert ours["abs_rel"] == pytest.approx(float(share), rel=1e-6)
    logs = judged.mean_squared_error(*(x.log() for x in pair), squared=False)
    assert ours["rmse_log"] == pytest.approx(float(logs), rel=1e-6)
