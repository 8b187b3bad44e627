"""What the kept state of a sweep over C depends on."""

import dataclasses

import densefiles
import pytest

from dinov2_jax.cli import evaluate_logreg, sweeps


@pytest.mark.parametrize(
    ("split", "anew"),
    [("val", False), ("labels/val", False), ("train", True), ("labels/train", True)],
)
def test_a_sweep_depends_on_train_and_its_labels_alone(split, anew, tmp_path):
    backbone = densefiles.backbone(depth=1)
    job = densefiles.job(evaluate_logreg, backbone, ("a", "b"), tmp_path)
    prints = dict.fromkeys(("train", "val", "labels/train", "labels/val"), "before")
    for one in (prints, prints | {split: "after"}):
        sweeps.resumed(dataclasses.replace(job, fingerprints=one), "map")
    assert (tmp_path / "training.old").exists() == anew
