"""The setting limit leaves images out of what linear heads learn from."""

import densefiles

from dinov2_jax.cli import evaluate_linear
from dinov2_jax.data import labelled, sources


def test_views_are_of_the_images_that_a_limit_leaves(tmp_path, monkeypatch):
    make, seen = labelled.train_batches, []

    def spied(source, **options):
        seen.append([source.name(i) for i in range(len(source))])
        return make(source, **options)

    monkeypatch.setattr(labelled, "train_batches", spied)
    specs = ("demo:train", "demo:val")
    settings = {"resize": 32, "crop": 32, "batch_size": 8, "limit": 28}
    settings |= {"blocks": (1,), "steps": 2, "rates": (8.0,), "train_batch": 16}
    backbone = densefiles.backbone(depth=1)
    job = densefiles.job(evaluate_linear, backbone, specs, tmp_path, **settings)
    assert evaluate_linear.run(job).data["train"]["images"] == 28
    whole = sources.open_source(specs[0])
    assert seen == [[whole.name(i * len(whole) // 28) for i in range(28)]]
