"""dinov2-jax train: pretrain from a config; the same command again continues."""

import argparse
import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import sys
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax import checkpoint, errors, lease, processes, sharding, tree
from dinov2_jax import config as settings
from dinov2_jax.cli import (
    assemble,
    depths,
    feeding,
    probes,
    replay,
    restoring,
    starting,
    workdir,
)
from dinov2_jax.convert import export, names
from dinov2_jax.data import pipeline, rules, sources
from dinov2_jax.data.record import Source
from dinov2_jax.models import dino, vit
from dinov2_jax.train import history, loop, progress
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
        help="the run's folder, the same one for all hosts",
    )
    parser.add_argument(
        "--allow-config-change",
        action="store_true",
        help="continue a workdir although its config was another",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="begin again at step 0 in a workdir whose checkpoints are gone; with "
        "checkpoints, continue as without it",
    )
    parser.add_argument(
        "--replay",
        type=lambda text: pathlib.Path(text).expanduser(),
        help="WORKDIR/failed/STEP: run the step that was not finite again, and no other",
    )
    options, rest = parser.parse_known_args(given)
    options.workdir = workdir.folder(options.workdir)
    return options, settings.overrides(rest)


def main(given: list[str]) -> int:
    """Run the command; returns the exit code."""
    options, overrides = arguments(given)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    config = settings.load(options.config, overrides)
    found = processes.start()
    if found and jax.process_index() == 0:
        print(found, file=sys.stderr)
    assemble.check(config, jax.device_count(), jax.process_count())
    if config.train.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    mesh = assemble.mesh(config)
    model = assemble.model(config, mesh)
    if options.replay:
        return replay.main(config, model, mesh, options.replay)
    first = jax.process_index() == 0
    if first:
        workdir.check(
            options.workdir, config, options.allow_config_change, options.restart
        )
    train, val = open_sources(config, options.workdir)
    feeding.check(config, model.backbone.patch_size, train)
    if config.init.weights and not any(options.workdir.glob("checkpoints/[0-9]*")):
        starting.check(config, model)
    lock = (
        lease.held(options.workdir, "--workdir") if first else contextlib.nullcontext()
    )
    with errors.at(options.workdir, "--workdir"), lock:
        if first:
            workdir.claim(
                options.workdir, config, options.allow_config_change, options.restart
            )
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
    d = config.data
    told = rules.of(d.range, d.damaged)
    train = sources.open_source(d.train, cache_dir=cache)
    pipeline.require_decodable(train, max_pixels=d.max_pixels, rules=told)
    depths.tell(d.train, train, d.max_pixels, told)
    if not (config.data.val and config.eval.every):
        return train, None
    val = sources.open_source(config.data.val, cache_dir=cache)
    pipeline.require_decodable(val, max_pixels=d.max_pixels, rules=told)
    probes.require_labels(train, val, config.eval.limit)
    return train, val


def pretrain(
    config: ConfigDict,
    model: dino.DINO,
    mesh: Mesh,
    folder: pathlib.Path,
    train: Source,
    val: Source | None,
    command: list[str],
) -> str:
    """Start or continue the run in `folder`; returns why it stopped early, or ""."""
    stop, t, c = stopping(config), config.train, config.checkpoint
    recipe = assemble.recipe(config, model, assemble.shapes(config, model))
    saving = Saving(folder)
    checkpoints = checkpoint.manager(
        folder / "checkpoints", c.keep, c.keep_every, c.keep_best, saving.written
    )
    wanted = restoring.targets(config, model, recipe, mesh)
    state, done, note = restoring.newest_or_fresh(
        config, model, recipe, wanted, checkpoints
    )
    if done > t.steps:
        raise errors.InputError(
            f"{folder} is at step {done}, beyond train.steps={t.steps}; raise it, or "
            "choose another --workdir."
        )
    first, lines = jax.process_index() == 0, note["history"]
    log = history.History(folder, done, lines) if first else history.Silent(lines)
    shown = progress.Progress(done, t.steps, None if first else progress.NOWHERE)
    if first:
        saved = checkpoints.latest_step()
        introduce(config, mesh, folder, command, state.params, saved, shown)
    tally = loop.Tally(**note["tally"])

    def save(done: int, state: Any, top1: float | None) -> None:
        counts = dataclasses.asdict(tally)
        note = {"next_step": done, "history": log.lines, "tally": counts}
        checkpoints.wait_until_finished()
        saving.step = done
        checkpoint.save(checkpoints, done, state, note, top1)

    patch_size = model.backbone.patch_size
    batches = feeding.batches(config, patch_size, mesh, folder, train, done)
    try:
        state, done, reason = loop.run(
            state,
            step=assemble.update(recipe, wanted, mesh),
            batches=batches,
            start=done,
            stop=t.steps,
            images=t.batch_size,
            history=log,
            progress=shown,
            save=save,
            ended=stop,
            guard=loop.Guard(
                t.max_rejected, functools.partial(replay.keep, folder), tally
            ),
            total=sharding.total,
            log_every=t.log_every,
            save_every=c.every,
            probes=watchers(config, model.backbone, mesh, folder, train, val),
            best=Best.of(folder) if c.keep_best else lambda metrics: False,
        )
    finally:
        batches.close()
        checkpoints.wait_until_finished()
        checkpoints.close()
        log.close()
    backbone = sharding.whole(state.teacher["backbone"])
    if first:
        export_backbone(config, model.backbone, backbone, folder, done)
        workdir.note(folder, finished=workdir.now(), step=done, stopped=reason)
        shown.say(f"report: {report.write([folder])}")
    return reason


@dataclasses.dataclass
class Saving:
    """Notes in run.json which checkpoint is written, so that its loss is noticed.

    Fields: the workdir; the step that is being saved.
    """

    folder: pathlib.Path
    step: int = 0

    def written(self) -> None:
        """For `checkpoint.manager`."""
        if jax.process_index() == 0:
            workdir.note(self.folder, saved=self.step)


@dataclasses.dataclass
class Best:
    """Tells whether a k-NN accuracy is above all that checkpoints were saved with."""

    top1: float

    @classmethod
    def of(cls, folder: pathlib.Path) -> "Best":
        """The best of the checkpoints that a workdir holds."""
        known = checkpoint.accuracies(folder / "checkpoints").values()
        return cls(max(known, default=-math.inf))

    def __call__(self, measurements: loop.Metrics) -> bool:
        """Whether these are the best so far; the same on every process."""
        top1 = measurements.get("knn/top1")
        if top1 is None:
            return False
        # One answer for all: a process that saves waits for the others.
        better = sharding.any_process(top1 > self.top1)
        self.top1 = max(self.top1, top1)
        return better


def stopping(config: ConfigDict) -> loop.Stop:
    """When this run ends early; the clock of `train.minutes` starts now."""
    t, several = config.train, jax.process_count() > 1
    agree = sharding.any_process if several else None
    return loop.Stop(t.stop_at, t.minutes, agree, t.log_every).on_signals()


def introduce(
    config: ConfigDict,
    mesh: Mesh,
    folder: pathlib.Path,
    command: list[str],
    params: dict,
    saved: int | None,
    shown: progress.Progress,
) -> None:
    """Tell of this start, on the screen and in run.json; `saved`: newest checkpoint."""
    count = {name: tree.count(part) for name, part in params.items()}
    kind = f"{jax.devices()[0].device_kind} x {jax.device_count()}"
    workdir.describe(folder, command, saved=saved, parameters=count, devices=kind)
    shown.say(f"{config.model.variant}: {count} parameters; {described(mesh)}")
    if saved:
        shown.say(f"continuing at step {saved} of {config.train.steps}")


def described(mesh: Mesh) -> str:
    """The devices of a run and their arrangement, in words."""
    if mesh.size == 1:
        return "1 device"
    replicas, ring = mesh.devices.shape
    return f"{mesh.size} devices, {replicas} replicas on rings of {ring}"


def watchers(
    config: ConfigDict,
    backbone: vit.ViT,
    mesh: Mesh,
    folder: pathlib.Path,
    train: Source,
    val: Source | None,
) -> list[loop.Probe]:
    """What is measured now and then: k-NN where there is a validation source."""
    if val is None:
        return []
    probe = probes.TeacherProbe(config, backbone, mesh, folder, train, val)
    found = [loop.Probe(config.eval.every, probe.measure)]
    if jax.process_index() == 0:
        found.append(loop.Probe(config.eval.every, reporter(folder)))
    return found


def reporter(folder: pathlib.Path):
    """A probe that rebuilds the report; it measures nothing."""

    def rebuild(state: Any) -> dict[str, float]:
        report.write([folder])
        return {}

    return rebuild


def export_backbone(config, backbone, params, folder: pathlib.Path, done: int) -> None:
    """export/backbone.safetensors: the teacher's backbone, official names."""
    facts = {"step": done, "variant": config.model.variant}
    about = export.about(backbone) | facts
    tensors = names.backbone_to_official(params, backbone.patch_size)
    export.write_safetensors(folder / "export" / "backbone.safetensors", tensors, about)
