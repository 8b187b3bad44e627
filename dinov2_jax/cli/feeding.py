"""The training batches of a run, on its devices."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax import errors, sharding
from dinov2_jax.cli import assemble, workdir
from dinov2_jax.data import build, pipeline, rules
from dinov2_jax.data.batch import Batch
from dinov2_jax.data.record import Source
from dinov2_jax.viz import crops


def batches(
    config: ConfigDict,
    patch_size: int,
    mesh: Mesh,
    folder: pathlib.Path,
    source: Source,
    start: int,
) -> Iterator[tuple[Any, int, int]]:
    """Batches on the devices, with what this process alone met in each.

    Where the devices cut the crops, that is dispatched right behind the transfer: both
    run while the step before is at work.

    Of the first batch of a new run a picture is left in the workdir.

    Args:
        config: all settings.
        patch_size: of the model.
        mesh: the devices.
        folder: the workdir; takes the picture and skipped.txt.
        source: where the images come from.
        start: steps done before.
    Returns: an iterator of (batch, records skipped in this process's share of it, reads
        tried again).
    Raises: ValueError if more than `data.max_skipped` of a process's share of a step's
        records cannot be decoded.
    """
    most, processes = config.data.max_skipped, jax.process_count()
    share = config.train.batch_size // processes
    whose = f" of process {jax.process_index()}" if processes > 1 else ""
    skipped = workdir.SkippedRecords(folder, source)
    cut = None
    if assemble.canvas(config) is not None:
        cut = assemble.cutter(config, mesh)
    for step, built in enumerate(_built(config, patch_size, source, start), start):
        lost = skipped.add(built.skipped)
        if lost > most * share:
            raise errors.InputError(
                f"{lost} of {share} records of a step{whose} cannot be decoded, more "
                f"than data.max_skipped={most}; see {skipped.path}."
            )
        batch = sharding.put(built.batch, mesh)
        if cut is not None:
            batch = batch.cropped(*cut(batch.images, batch.draws))
        if step == 0 and jax.process_index() == 0:
            workdir.save_picture(folder, "crops", _picture(batch, patch_size))
        yield batch, lost, built.retries


def check(config: ConfigDict, patch_size: int, source: Source) -> None:
    """Raises ValueError unless batches can be built as the config says; reads none."""
    _built(config, patch_size, source, 0).close()


def _built(
    config: ConfigDict, patch_size: int, source: Source, start: int
) -> Iterator[build.Built]:
    """This process's parts of the batches from step `start` on, on the host."""
    d, t = config.data, config.train
    return pipeline.train_batches(
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
        attempts=d.attempts,
        canvas=assemble.canvas(config),
        resize=d.resize,
        rules=rules.of(d.range, d.damaged),
    )


def _picture(batch: Batch, patch_size: int, most: int = 6) -> np.ndarray:
    """[H W 3] uint8: the crops and masks of the first images on the first device."""
    seen = (batch.global_crops, batch.local_crops, batch.masks)
    first = (np.asarray(x.addressable_shards[0].data[:most]) for x in seen)
    return crops.crops_picture(*first, patch_size)
