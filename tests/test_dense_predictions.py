"""predictions.parquet of pixels and clips: the scores of every image."""

import densefiles
import numpy as np
import pyarrow.parquet
import pytest

from dinov2_jax.cli import evaluate_depth, evaluate_segmentation, results
from dinov2_jax.evals import depth

SMALL = {"steps": 2, "batch_size": 8, "warmup": 1, "test_batch": 8}


def judged(task, specs, out, **settings):
    """The metrics of a task, and its table as columns."""
    backbone = densefiles.backbone(depth=2)
    job = densefiles.job(task, backbone, specs, out, **SMALL, **settings)
    out.mkdir(exist_ok=True)
    outcome = task.run(job)
    about = results.write(job, outcome, 1.0)
    table = pyarrow.parquet.read_table(out / "predictions.parquet")
    return about["metrics"], table.to_pydict()


def test_every_image_of_segmentation_has_its_scores(tmp_path):
    specs = densefiles.coin_folders(tmp_path)
    settings = {"crop": 32, "side": 64, "stride": 32}
    metrics, table = judged(evaluate_segmentation, specs, tmp_path / "a", **settings)
    assert table["split"] == ["val", "val"] and table["record"] == [0, 1]
    assert [name.rpartition("/")[2] for name in table["id"]] == ["2.png", "5.png"]
    pixels = np.array(table["labelled_pixels"])
    shares = np.array(table["pixel_accuracy"])
    # The accuracy of all pixels is the mean of the images', by their labelled pixels.
    assert (pixels * shares).sum() / pixels.sum() == pytest.approx(
        metrics["pixel_accuracy"]
    )
    assert all(0 <= x <= 1 for x in table["miou"])


def test_every_image_of_depth_has_its_errors(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for i in range(3):
            image = rng.integers(0, 256, (32, 32, 3), np.uint8)
            metres = np.full((32, 32), 1.0 + i) * (i < 2 or part == "train")
            densefiles.save(tmp_path / part, str(i), image, metres)
    specs = tuple(
        f"pairs:{tmp_path / p / 'images'},{tmp_path / p / 'maps'}"
        for p in ("train", "val")
    )
    settings = {"method": "lin1", "bins": 8, "crop": (32, 32), "eval_crop": "none"}
    settings |= {"border": (0, 0, 0, 0)}
    metrics, table = judged(evaluate_depth, specs, tmp_path / "out", **settings)
    assert set(depth.METRICS) < set(table) and table["record"] == [0, 1, 2]
    for key in depth.METRICS:
        known, unknown = table[key][:2], table[key][2]
        # An image without truth has no error and counts in no mean.
        assert np.isnan(unknown)
        assert np.mean(known) == pytest.approx(metrics[key])
