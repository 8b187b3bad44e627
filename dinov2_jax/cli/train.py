"""dinov2-jax train: pretrain from a config; the same command again continues."""

import argparse
import functools
import logging
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dinov2_jax import checkpoint, sharding, tree
from dinov2_jax import config as settings
from dinov2_jax.cli import assemble, probes, starting, workdir
from dinov2_jax.convert import export, names
from dinov2_jax.data import pipeline, sources
from dinov2_jax.train import history, loop, progress
from dinov2_jax.train import state as train_state
from dinov2_jax.train import step as train_step
from dinov2_jax.viz import crops as crops_picture
from dinov2_jax.viz import report


def arguments(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the `--config.x=y` overrides without their prefix.

    Raises: ConfigError for an option that does not exist.
    """
    parser = argparse.ArgumentParser(
        prog="dinov2-jax train",
        description=__doc__,
        epilog="Any setting: --config.SECTION.KEY=VALUE; all are in dinov2_jax/config.py.",
    )
    parser.add_argument(
        "--config", required=True, help="config file, PATH or PATH:ARGUMENT"
    )
    parser.add_argument(
        "--workdir",
        required=True,
        type=lambda text: pathlib.Path(text).expanduser(),
        help="the run's folder",
    )
    parser.add_argument(
        "--allow-config-change",
        action="store_true",
        help="continue a workdir although its config was another",
    )
    options, rest = parser.parse_known_args(given)
    overrides = [text.removeprefix("--config.") for text in rest]
    for text in rest:
        if not text.startswith("--config."):
            raise settings.ConfigError(
                f"unknown option {text!r}; settings are --config.SECTION.KEY=VALUE."
            )
    return options, overrides


def main(given: list[str]) -> int:
    """Run the command; returns the exit code."""
    options, overrides = arguments(given)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    config = settings.load(options.config, overrides)
    sharding.start_processes()
    assemble.check(config, jax.device_count(), jax.process_count())
    if config.train.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    mesh = sharding.make_mesh(config.mesh.fsdp)
    model = assemble.model(config, mesh)
    first = jax.process_index() == 0
    if first:
        workdir.check(options.workdir, config, options.allow_config_change)
    train, val = open_sources(config, options.workdir)
    if config.init.weights and not any(options.workdir.glob("checkpoints/[0-9]*")):
        starting.check(config, model)
    if first:
        workdir.claim(options.workdir, config, options.allow_config_change)
    try:
        reason = pretrain(config, model, mesh, options.workdir, train, val, given)
    except loop.NotFinite as error:
        print(f"dinov2-jax train: {error}", file=sys.stderr)
        return 3
    if first and reason:
        print(f"Stopped: {reason}. The same command goes on from here.")
    return 0


def open_sources(config: ConfigDict, folder: pathlib.Path):
    """The training source, checked for images, and the validation source or None."""
    cache = folder.parent / f".{folder.name}.lists"
    train = sources.open_source(config.data.train, cache_dir=cache)
    pipeline.require_decodable(train, max_pixels=config.data.max_pixels)
    if not (config.data.val and config.eval.every):
        return train, None
    val = sources.open_source(config.data.val, cache_dir=cache)
    pipeline.require_decodable(val, max_pixels=config.data.max_pixels)
    probes.require_labels(train, val)
    return train, val


def pretrain(
    config: ConfigDict,
    model,
    mesh: Mesh,
    folder: pathlib.Path,
    train,
    val,
    command: list[str],
) -> str:
    """Start or continue the run in `folder`; returns why it stopped early, or ""."""
    began, stop = time.monotonic(), loop.Stop().on_signals()
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda k: assemble.initial_params(config, model, k), key)
    recipe = assemble.recipe(config, model, shapes)
    c = config.checkpoint
    checkpoints = checkpoint.manager(
        folder / "checkpoints", c.keep, c.keep_every, c.keep_best
    )
    layout, state, done, note = restored_or_new(
        config, model, recipe, mesh, checkpoints, key
    )
    first, steps = jax.process_index() == 0, config.train.steps
    if done > steps:
        raise ValueError(
            f"{folder} is at step {done}, beyond train.steps={steps}; raise it, or "
            "choose another --workdir."
        )
    lines = note["history"]
    log = history.History(folder, done, lines) if first else history.Silent(lines)
    shown = progress.Progress(done, steps, None if first else progress.NOWHERE)
    count = {name: tree.count(part) for name, part in state.params.items()}
    if first:
        workdir.describe(
            folder,
            command,
            parameters=count,
            devices=str(jax.devices()[0].device_kind) + f" x {jax.device_count()}",
        )
        shown.say(f"{config.model.variant}: {count} parameters, {mesh.size} device(s)")
        if done:
            shown.say(f"continuing at step {done} of {steps}")
    measures = []
    if val is not None:
        probe = probes.TeacherProbe(config, model.backbone, mesh, folder, train, val)
        measures.append(loop.Probe(config.eval.every, probe.measure))
        if first:
            measures.append(loop.Probe(config.eval.every, reporter(folder)))

    def save(done: int, state: Any, top1: float | None) -> None:
        note = {"next_step": done, "history": log.lines}
        checkpoint.save(checkpoints, done, state, note, top1)

    def ended(done: int) -> str:
        late = time.monotonic() - began > 60 * config.train.minutes
        if config.train.stop_at and done >= config.train.stop_at:
            return f"train.stop_at={config.train.stop_at}"
        if config.train.minutes and late:
            return agreed(f"train.minutes={config.train.minutes}", done)
        return agreed(stop.reason, done)

    def agreed(reason: str, done: int) -> str:
        """The reason, once any process has one: all must stop at the same step."""
        if jax.process_count() == 1:
            return reason
        if done % config.train.log_every:
            return ""
        some = sharding.any_process(bool(reason))
        return (reason or "another process ended") if some else ""

    batches = placed_batches(
        config, model.backbone.patch_size, mesh, folder, train, done
    )
    update = jax.jit(
        functools.partial(train_step.train_step, recipe),
        donate_argnums=0,
        out_shardings=(layout, NamedSharding(mesh, PartitionSpec())),
    )
    try:
        state, done, reason = loop.run(
            state,
            step=update,
            batches=batches,
            start=done,
            stop=steps,
            images=config.train.batch_size,
            history=log,
            progress=shown,
            save=save,
            ended=ended,
            log_every=config.train.log_every,
            save_every=c.every,
            probes=measures,
            max_rejected=config.train.max_rejected,
        )
    finally:
        batches.close()
        checkpoints.wait_until_finished()
        checkpoints.close()
        log.close()
    backbone = sharding.whole(state.teacher["backbone"])
    if first:
        export_backbone(config, model.backbone, backbone, folder, done)
        page = report.write([folder])
        shown.say(f"report: {page}")
    return reason


def restored_or_new(config, model, recipe, mesh, checkpoints, key):
    """(layout, state, steps done, note) of the newest checkpoint or of step 0."""

    def fresh(key):
        params = assemble.initial_params(config, model, key)
        teacher = jax.tree.map(lambda x: x + 0, params)
        sizes = assemble.prototypes(config)
        return train_state.create(params, teacher, recipe.tx, sizes)

    shapes = jax.eval_shape(fresh, key)
    layout = sharding.layouts(shapes, mesh)
    targets = jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        shapes,
        layout,
    )
    found = checkpoint.restore(checkpoints, targets)
    if found is not None:
        done, state, note = found
        return layout, state, done, note
    state = jax.jit(fresh, out_shardings=layout)(key)
    if config.init.weights:
        state = starting.with_weights(state, layout, config, model.backbone)
    return layout, state, 0, {"history": []}


def placed_batches(
    config, patch_size, mesh, folder, source, start
) -> Iterator[tuple[Any, int]]:
    """Batches on the devices, and how many records were skipped in each.

    Raises: ValueError if more than `data.max_skipped` of a step's records were.
    """
    d, t = config.data, config.train
    skipped = workdir.SkippedRecords(folder, source)
    batches = pipeline.train_batches(
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
    fresh = start == 0
    for batch, ids in batches:
        lost = skipped.add(ids)
        if lost > d.max_skipped * t.batch_size:
            raise ValueError(
                f"{lost} of {t.batch_size} records of a step cannot be decoded, more "
                f"than data.max_skipped={d.max_skipped}; see {skipped.path}."
            )
        if fresh and jax.process_index() == 0:
            shown = crops_picture.crops_picture(
                *(np.asarray(x)[:6] for x in (batch.global_crops, batch.local_crops)),
                np.asarray(batch.masks)[:6],
                patch_size,
            )
            workdir.save_picture(folder, "crops", shown)
            fresh = False
        yield sharding.put(batch, mesh), lost


def reporter(folder: pathlib.Path):
    """A probe that rebuilds the report; it measures nothing."""

    def rebuild(state: Any) -> dict[str, float]:
        report.write([folder])
        return {}

    return rebuild


def export_backbone(config, backbone, params, folder: pathlib.Path, done: int) -> None:
    """export/backbone.safetensors: the teacher's backbone, official names."""
    about = {
        "step": done,
        "variant": config.model.variant,
        "registers": backbone.registers,
        "ffn": backbone.ffn,
        "image_size": backbone.image_size,
        "antialias": backbone.antialias,
        "offset": backbone.offset,
    }
    tensors = names.backbone_to_official(params, backbone.patch_size)
    export.write_safetensors(folder / "export" / "backbone.safetensors", tensors, about)
