"""The training batches of a run, on its devices."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax import sharding
from dinov2_jax.cli import assemble, workdir
from dinov2_jax.data import pipeline
from dinov2_jax.data.record import Source
from dinov2_jax.viz import crops


def batches(
    config: ConfigDict,
    patch_size: int,
    mesh: Mesh,
    folder: pathlib.Path,
    source: Source,
    start: int,
) -> Iterator[tuple[Any, int]]:
    """Batches on the devices, and how many records were skipped in each.

    Of the first batch of a new run a picture is left in the workdir.

    Args:
        config: all settings.
        patch_size: of the model.
        mesh: the devices.
        folder: the workdir; takes the picture and skipped.txt.
        source: where the images come from.
        start: steps done before.
    Raises: ValueError if more than `data.max_skipped` of a step's records cannot be
        decoded.
    """
    d, t = config.data, config.train
    skipped = workdir.SkippedRecords(folder, source)
    made = pipeline.train_batches(
        source,
        multicrop=assemble.multicrop(config),
        patch_size=patch_size,
        mask_probability=config.masks.probability,
        mask_ratio=config.masks.ratio,
        seed=config.seed,
        batch_size=t.batch_size,
        group_size=t.group_size,
        start=start,
        stop=t.steps,
        process=jax.process_index(),
        processes=jax.process_count(),
        workers=d.workers,
        threads=d.threads,
        prefetch=d.prefetch,
        max_pixels=d.max_pixels,
    )
    for step, (batch, ids) in enumerate(made, start):
        lost = skipped.add(ids)
        if lost > d.max_skipped * t.batch_size:
            raise ValueError(
                f"{lost} of {t.batch_size} records of a step cannot be decoded, more "
                f"than data.max_skipped={d.max_skipped}; see {skipped.path}."
            )
        if step == 0 and jax.process_index() == 0:
            workdir.save_picture(folder, "crops", _picture(batch, patch_size))
        yield sharding.put(batch, mesh), lost


def _picture(batch: Any, patch_size: int, most: int = 6) -> np.ndarray:
    """[H W 3] uint8: the crops and masks of a batch's first images."""
    return crops.crops_picture(
        np.asarray(batch.global_crops[:most]),
        np.asarray(batch.local_crops[:most]),
        np.asarray(batch.masks[:most]),
        patch_size,
    )
