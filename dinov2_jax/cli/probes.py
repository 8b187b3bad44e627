"""In-run k-NN and pictures on the teacher's features."""

import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax import errors, features
from dinov2_jax.cli import frozen, workdir
from dinov2_jax.data import classes, pipeline, rules
from dinov2_jax.data.batch import normalize
from dinov2_jax.data.record import Source
from dinov2_jax.evals import knn, metrics
from dinov2_jax.models import vit
from dinov2_jax.viz import pca


def require_labels(train: Source, val: Source, limit: int) -> None:
    """Raises ValueError unless both have labels, those of val among those of train.

    Where a source knows the labels of its images without reading them, each of the
    `limit` images that will be measured must have one.
    """
    for name, source in (("train", train), ("val", val)):
        if not source.classes:
            raise errors.InputError(
                f"config.data.{name} has no labels, which the in-run k-NN needs; use "
                "class folders or set config.eval.every=0."
            )
        labels = getattr(source, "labels", None)
        if labels is not None:
            labels = labels[frozen.chosen(len(labels), limit)]
            frozen.require_labels(f"config.data.{name}", labels, len(source.classes))
    classes.numbers(train.classes, val.classes, "config.data.val")


BASELINES = {
    "raw_pixels_top1": metrics.raw_pixels,
    "color_histogram_top1": metrics.color_histograms,
}
"""Features of 8 x 8 pixels and of colours: what no network can do."""


class TeacherProbe:
    """Measures the teacher's frozen features on the two splits of a labelled source.

    Settings: `config.eval`. Every process extracts its part; results are the same on
    all of them. Pictures are written by the first.
    """

    def __init__(
        self,
        config: ConfigDict,
        backbone: vit.ViT,
        mesh: Mesh,
        folder: pathlib.Path,
        train: Source,
        val: Source,
    ):
        """`train` and `val` have passed `require_labels`."""
        self.config, self.mesh, self.folder = config, mesh, folder
        self.train, self.val = train, val
        self.grid = (config.eval.crop // backbone.patch_size,) * 2

        @jax.jit
        def forward(params, images):
            out = backbone.apply({"params": params}, normalize(images))
            return {"cls": out.cls, "patches": out.patches}

        self.forward = forward

    def batches(self, source: Source, batch_size: int, limit: int):
        """This process's batches of at most `limit` images, spread over a source."""
        e, d = self.config.eval, self.config.data
        return pipeline.eval_batches(
            source,
            batch_size=batch_size,
            resize=e.resize,
            crop=e.crop,
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=d.threads,
            max_pixels=d.max_pixels,
            limit=limit,
            rules=rules.of(d.range, d.damaged),
        )

    def extract(self, apply, split: str) -> tuple[Any, np.ndarray]:
        """Features of a whole split, up to `eval.limit`, and their training classes."""
        e, source = self.config.eval, {"train": self.train, "val": self.val}[split]
        batches = self.batches(source, e.batch_size, e.limit)
        found, labels, _ = features.extract(apply, batches, self.mesh)
        spec = f"config.data.{split}"
        frozen.require_labels(spec, labels, len(source.classes))
        numbers = classes.numbers(self.train.classes, source.classes, spec)
        return found, numbers[labels]

    def measure(self, state: Any) -> dict[str, float]:
        """k-NN and spread of the teacher's features; at step 0 also of plain pixels."""
        params, e = state.teacher["backbone"], self.config.eval
        baselines = BASELINES if int(state.step) == 0 else {}

        def apply(images):
            own = {"top1": self.forward(params, images)["cls"]}
            return own | {name: f(images) for name, f in baselines.items()}

        train, train_labels = self.extract(apply, "train")
        val, val_labels = self.extract(apply, "val")
        found = self.score(train["top1"], train_labels, val["top1"], val_labels)
        for name in baselines:
            plain = self.score(train[name], train_labels, val[name], val_labels)
            found[f"knn/{name}"] = plain["knn/top1"]
        found |= {
            "health/feature_std": metrics.unit_std(val["top1"].astype(np.float32)),
            "health/effective_rank": metrics.effective_rank(val["top1"]),
        }
        patches, images = self.some_patches(params)
        flat = patches.reshape(-1, patches.shape[-1]).astype(np.float32)
        found["health/effective_rank_patches"] = metrics.effective_rank(flat)
        if jax.process_index() == 0:
            maps = patches.reshape(len(patches), *self.grid, -1).astype(np.float32)
            picture = np.asarray(
                pca.pca_picture(images[: e.pictures], maps[: e.pictures])
            )
            workdir.save_picture(self.folder, "pca", picture)
            if int(state.step) == 0:
                workdir.save_picture(self.folder, "pca_untrained", picture)
        return found

    def score(self, train, train_labels, val, val_labels) -> dict[str, float]:
        """Accuracies of k-NN; the first k of the config is `knn/top1`."""
        ks, shards = self.config.eval.neighbors, self.mesh.size
        found = knn.top1(
            train,
            train_labels,
            val,
            val_labels,
            ks,
            self.config.eval.temp,
            shards=shards,
        )
        return {"knn/top1": found[ks[0]]} | {
            f"knn/top1_k{k}": x for k, x in found.items()
        }

    def some_patches(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Patch tokens [n N D] and images [n S S 3] of validation images, spread out."""

        def patches(images):
            return {
                "patches": self.forward(params, images)["patches"],
                "images": images,
            }

        number = min(len(self.val), max(self.config.eval.pictures, 32))
        number = -(-number // self.mesh.size) * self.mesh.size
        batches = self.batches(self.val, number, number)
        found, _, _ = features.extract(patches, batches, self.mesh)
        return found["patches"], found["images"]
