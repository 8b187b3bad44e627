"""dinov2-jax evaluate: frozen features by the protocols of the paper.

dinov2-jax evaluate knn --weights=dinov2_vits14 --train=folder:train --val=folder:val \\
    --out=results/knn
dinov2-jax evaluate linear ... --test v2=folder:imagenetv2 --set steps=5000
dinov2-jax evaluate retrieval --weights=runs/demo --val=folder:images --out=results/r
dinov2-jax evaluate all --config=configs/suites/transfer.py --weights=runs/demo \\
    --out=results
dinov2-jax evaluate table results/*

Defaults are the paper's protocols; --set KEY=VALUE changes one setting, --config=FILE
several (Python, whose get_config() returns an ml_collections ConfigDict). Features are
kept in --cache and serve later tasks. Each task leaves results.json, a line in
results.csv and report.html. `evaluate TASK --settings` lists the settings of a task.
"""

import argparse
import importlib
import json
import pathlib
import sys
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dinov2_jax import errors, lease, processes, values
from dinov2_jax.cli import (
    backbone_options,
    evaluation_table,
    frozen,
    results,
    setting,
    suites,
)

TASKS = {
    "knn": "classes by the vote of the nearest neighbours",
    "linear": "linear classifiers, 52 at once, the best on --val reported",
    "logreg": "logistic regression with a chosen L2 penalty",
    "retrieval": "whether the nearest images belong to a query",
    "segmentation": "classes of pixels by a linear head",
    "segmentation_ms": "the same over four layers, at several scales",
    "depth": "depth of pixels by a linear or DPT head, as on NYUd",
    "depth_kitti": "the same, as on KITTI",
    "video": "classes of clips by linear classifiers over some frames",
}
"""Task -> what it is. cli/evaluate_TASK.py has its SETTINGS, inputs(Job), which opens
what it reads, and run(Job) -> Outcome."""

ALONE = ("retrieval",)
"""Tasks that may go without --train."""


def arguments(given: list[str]) -> argparse.Namespace:
    """The options."""
    lines = "\n".join(f"  {name:<16} {text}" for name, text in TASKS.items())
    parser = argparse.ArgumentParser(
        prog="dinov2-jax evaluate",
        description=f"{__doc__}\ntasks:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task", choices=(*TASKS, "all", "table"), metavar="TASK")
    add("folders", nargs="*", type=pathlib.Path, help="of table: folders of results")
    add(
        "--weights", help="an official name, a workdir, RUN@best, RUN@STEP, or any file"
    )
    add("--name", help="official name that the weights must fit")
    backbone_options.add(parser)
    add("--image-size", type=backbone_options.size, help="as of dinov2-jax embed")
    add("--train", help="source, as config.data.train")
    add("--val", help="source")
    add("--test", action="append", default=[], metavar="NAME=SPEC")
    add("--labels", action="append", default=[], metavar="NAME=FILE")
    add("--out", type=pathlib.Path, help="folder of the results; of table: a page")
    add("--cache", type=pathlib.Path, help="folder of features; default OUT/features")
    add("--set", action="append", default=[], metavar="KEY=VALUE")
    add("--config", help="Python file of get_config(): settings; of all: the tasks")
    add("--settings", action="store_true", help="list a task's settings")
    return parser.parse_args(given)


def main(given: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = arguments(given)
    if options.task == "table":
        return evaluation_table.show(options.folders, options.out)
    if options.folders:
        raise errors.InputError(
            f"{options.folders[0]} is no option; folders are for table."
        )
    if options.settings:
        if options.task == "all":
            raise errors.InputError("all has no settings of its own; name a task.")
        print(setting.listed(_defaults(options.task)))
        return 0
    for key in ("weights", "out"):
        if getattr(options, key) is None:
            raise errors.InputError(
                f"--{key} is missing; see dinov2-jax evaluate --help."
            )
    processes.start()
    require_one_process(jax.process_count())
    run_all(options) if options.task == "all" else run_one(options)
    return 0


def require_one_process(count: int) -> None:
    """Raises ValueError if there are several: each would write the same files."""
    if count > 1:
        raise errors.InputError(
            f"evaluate uses all devices of one process, but {count} were started; start "
            "it once. For more images than one machine can take, make features by "
            "dinov2-jax embed, which divides them over processes."
        )


def run_one(options: argparse.Namespace) -> None:
    """One task."""
    file = {} if options.config is None else suites.read(options.config)
    told = file | pairs(options.set, "--set")
    wanted = settings(options.task, told)
    entry = {
        "task": options.task,
        "train": options.train,
        "val": options.val,
        "tests": pairs(options.test, "--test"),
        "labels": pairs(options.labels, "--labels"),
    }
    _check(entry, wanted)
    backbone = _backbone(options)
    done(_job(options, backbone, entry, wanted, options.out))


def run_all(options: argparse.Namespace) -> None:
    """All tasks of a config; those whose results are there are not run again."""
    if options.config is None:
        raise errors.InputError("evaluate all needs --config=FILE.py with its tasks.")
    common, entries = suites.tasks(options.config)
    common, jobs = common | pairs(options.set, "--set"), {}
    for name, entry in entries.items():
        _check_task(entry)
        own = entry.get("set", {})
        # What is told of all tasks goes to those that have such a setting.
        fits = {k: v for k, v in common.items() if k in _defaults(entry["task"])}
        jobs[name] = entry, settings(entry["task"], fits | own)
        _check(*jobs[name])
    unused = [k for k in common if not any(hasattr(s, k) for _, s in jobs.values())]
    if unused:
        raise errors.InputError(
            f"No task of {options.config} has the setting {unused[0]}."
        )
    backbone = _backbone(options)
    shared: dict[str, dict] = {"sources": {}, "prints": {}}
    opened = _opened(
        {
            name: _job(options, backbone, entry, wanted, options.out / name, **shared)
            for name, (entry, wanted) in jobs.items()
        }
    )
    found: dict[str, list[float]] = {}  # of a task, each set by its own metric
    for job in opened.values():
        about = _there(job) or done(job)
        metric = about["metric"]
        found.setdefault(job.task, []).append(about["metrics"][metric])
    for task, numbers in found.items():
        first = "rmse" if task.startswith("depth") else ""
        mean = results.shown(first, float(np.mean(numbers)))
        print(f"{task}: {mean} in the mean of {len(numbers)}")


def _backbone(options: argparse.Namespace) -> frozen.Backbone:
    """The weights that are judged."""
    how = backbone_options.chosen(options) | {"image_size": options.image_size}
    return frozen.load(options.weights, options.name, **how)


def done(job: results.Job) -> dict:
    """Run a job, write its files, and say what came out; returns results.json."""
    module = _module(job.task)
    job = job.opened(module.inputs)
    with (
        errors.at(job.out, "--out"),
        errors.at(job.cache, "--cache"),
        lease.held(job.out, "--out"),
    ):
        began = time.monotonic()
        outcome = module.run(job)
        about = results.write(job, outcome, time.monotonic() - began)
    first = results.shown(about["metric"], about["metrics"][about["metric"]])
    for note in outcome.notes:
        print(f"{job.task}: {note}")
    print(f"{job.task}: {about['metric']} {first}; see {job.out}/report.html")
    return about


def settings(task: str, given: Mapping[str, Any]) -> types.SimpleNamespace:
    """The settings of one of TASKS, as `setting.chosen`."""
    return setting.chosen(task, _defaults(task), given)


def _defaults(task: str) -> Mapping[str, Any]:
    """SETTINGS of a task."""
    return _module(task).SETTINGS


def _module(task: str) -> types.ModuleType:
    """cli/evaluate_TASK.py."""
    return importlib.import_module(f"dinov2_jax.cli.evaluate_{task}")


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE, several times."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise errors.InputError(f"{option} {text} is not NAME=VALUE.")
        if name in found:
            raise errors.InputError(f"{option} {name} is given twice.")
        found[name] = value
    return found


def _check_task(entry: dict) -> None:
    """Raises ValueError unless there is such a task."""
    if entry.get("task") not in TASKS:
        raise errors.InputError(
            f"{values.shown(entry)} is no task; it needs a task, one of "
            f"{', '.join(TASKS)}, with train and val."
        )


def _check(entry: dict, wanted: types.SimpleNamespace) -> None:
    """Raises ValueError unless a task is told where its images are."""
    task = entry["task"]
    alone = task in ALONE or getattr(wanted, "head", "")
    if entry.get("val") is None or (entry.get("train") is None and not alone):
        raise errors.InputError(f"{task} needs --train=SPEC and --val=SPEC.")
    if entry.get("tests") and task != "linear":
        raise errors.InputError(
            f"{task} takes no --test; the head of linear is run on them."
        )
    for name in entry.get("tests") or {}:
        if name in ("train", "val") or "/" in name:
            raise errors.InputError(
                f"--test {name}=...: {name} cannot name a test set, since the results "
                "name other things so; choose another name."
            )
    if entry.get("labels") and task not in ("linear", "logreg"):
        raise errors.InputError(f"{task} takes no --labels; linear and logreg do.")


def _opened(jobs: Mapping[str, results.Job]) -> dict[str, results.Job]:
    """All jobs with what they read; raises one ValueError for those that cannot be."""
    opened, bad = {}, {}
    for name, job in jobs.items():
        try:
            opened[name] = job.opened(_module(job.task).inputs)
        except errors.Error as error:
            bad[name] = str(error)
    if bad:
        name = next(iter(bad))
        raise errors.InputError(
            f"{len(bad)} of {len(jobs)} tasks have images that cannot be opened: "
            f"{', '.join(bad)}. {name}: {bad[name]}"
        )
    return opened


def _job(
    options, backbone, entry: dict, wanted, out: pathlib.Path, **shared
) -> results.Job:
    """What a task is given; `shared` by all tasks of a list."""
    return results.Job(
        task=entry["task"],
        weights=options.weights,
        backbone=backbone,
        train=entry.get("train"),
        val=entry["val"],
        tests=entry.get("tests") or {},
        labels=entry.get("labels") or {},
        out=out.expanduser(),
        cache=(options.cache or options.out / "features").expanduser(),
        settings=wanted,
        **shared,
    )


def _there(job: results.Job) -> dict | None:
    """The results of this very job, if they are there."""
    path = job.out / "results.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    asked = results.asked(job)
    changed = results.differences({k: about.get(k) for k in asked}, asked)
    if changed:
        some = f"differs in {', '.join(changed[:5])}; evaluated again"
        print(f"{job.task}: {path} {some}", file=sys.stderr)
        return None
    print(f"{job.task}: {path} is there already", file=sys.stderr)
    return about
