"""dinov2-jax plan: compile a config's training step for devices that are not at hand.

Tells whether it fits, what it computes, sends and needs, and how fast it can be at
best, by the real compiler of each topology.
"""

import argparse
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from dinov2_jax import config as settings
from dinov2_jax import errors, meter, writing
from dinov2_jax.plan import fitting, table, topologies

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # the topology is only compiled for
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process ends at its lock file
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server here
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any one; spares warnings at the start
    "TPU_WORKER_HOSTNAMES": "localhost",
    "CUDA_VISIBLE_DEVICES": "-1",
    # Programs for a topology can be written to a cache, but not read from it.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}


def arguments(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the `--config.x=y` overrides without their prefix.

    Raises: ConfigError for an option that does not exist.
    """
    parser = argparse.ArgumentParser(
        prog="dinov2-jax plan",
        description=__doc__,
        epilog=f"Topologies: {topologies.known()}. "
        "Any setting: --config.SECTION.KEY=VALUE.",
    )
    parser.add_argument("--config", required=True, help="config file")
    parser.add_argument(
        "--topology",
        required=True,
        action="append",
        type=lambda text: text.split(","),
        help="devices to compile for; several: again, or by commas",
    )
    parser.add_argument(
        "--batch-per-device",
        type=int,
        default=0,
        help="images of a device in a step; without it the config's batch is divided",
    )
    parser.add_argument(
        "--fit", action="store_true", help="search for the largest batch that fits"
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="compile without optimisations: sooner, but memory and overlap are "
        "not those of a run",
    )
    parser.add_argument(
        "--json",
        type=lambda text: pathlib.Path(text).expanduser(),
        help="file for all that was found",
    )
    options, rest = parser.parse_known_args(given)
    if options.batch_per_device < 0:
        raise errors.InputError(
            f"--batch-per-device={options.batch_per_device}; it needs 1 or more."
        )
    options.topology = [name for names in options.topology for name in names]
    return options, settings.overrides(rest)


def main(given: list[str]) -> int:
    """Run the command; returns the exit code, 1 if something does not fit."""
    options, overrides = arguments(given)
    config = settings.load(options.config, overrides)
    chosen = [topologies.parse(name) for name in options.topology]
    for topology in chosen:
        topologies.require_compiler(topology)
    if options.json:
        with errors.at(options.json, "--json"):
            writing.check(options.json)
    found, failed = [], False
    for topology in chosen:
        attempt = functools.partial(
            compiled, options.config, overrides, topology, options.fast
        )
        try:
            if options.fit:
                one = largest(attempt, config, topology, options.batch_per_device)
            else:
                one = attempt(options.batch_per_device)
        except errors.Error as error:
            if len(chosen) == 1:
                raise
            failed = True  # the others may take an hour, and are asked for too
            print(f"dinov2-jax plan: {topology.name}: {error}", file=sys.stderr)
            continue
        found.append(one)
        print(table.page(one, config.model.variant), flush=True)
        if not one["fits"]:
            print(f"dinov2-jax plan: {table.refusal(one, config)}", file=sys.stderr)
        if options.json:  # after each: the next may take long
            with errors.at(options.json, "--json"):
                write(options.json, {"config": config.to_dict(), "plans": found})
    if len(found) > 1:
        print(table.overview(found))
    return 1 if failed or not all(one["fits"] for one in found) else 0


def largest(attempt, config, topology: topologies.Topology, wanted: int) -> dict:
    """The plan of the wanted batch, or of the largest that fits, with the search."""
    t, plans = config.train, {}

    def tried(per_device: int) -> fitting.Try:
        plans[per_device] = one = attempt(per_device)
        return fitting.Try(per_device, one["needed"], one["fits"])

    tries = fitting.largest(
        tried,
        fitting.sizes(t.group_size, t.accumulate),
        wanted or 8,
        topology.kind.memory,
    )
    best = max((one.per_device for one in tries if one.fits), default=None)
    if wanted and wanted not in plans:
        plans[wanted] = attempt(wanted)
    shown = wanted or best or min(plans)
    return plans[shown] | {
        "largest": best,
        "tries": [
            {"per_device": n, "needed": one["needed"], "fits": one["fits"]}
            for n, one in plans.items()
        ],
    }


def compiled(
    config: str,
    overrides: list[str],
    topology: topologies.Topology,
    fast: bool,
    per_device: int,
) -> dict[str, Any]:
    """What a process of its own finds out; see `compiling`.

    Raises: ValueError if the settings do not fit together, or the compiler fails.
    """
    what = {
        "config": config,
        "overrides": overrides,
        "topology": topology.name,
        "per_device": per_device,
        "fast": fast,
    }
    environment = os.environ | ENVIRONMENT
    if fast:
        environment["JAX_OPTIMIZATION_LEVEL"] = "O0"
    batch = f"{per_device} images a device" if per_device else "the config's batch"
    with tempfile.TemporaryDirectory() as folder:
        request, result = (pathlib.Path(folder, n) for n in ("request", "result"))
        request.write_text(json.dumps(what), encoding="utf-8")
        command = [sys.executable, "-m", "dinov2_jax.cli.compiling", request, result]
        with open(pathlib.Path(folder, "errors"), "w+", encoding="utf-8") as output:
            code = watched(command, environment, output, f"{topology.name}, {batch}")
            output.seek(0)
            said = output.read().strip().splitlines()
        if not result.exists():
            if any(line.startswith("Traceback ") for line in said):
                print("\n".join(said), file=sys.stderr)
            raise errors.InputError(
                f"the compiler for {topology.name} ended with code {code}"
                + (f": {said[-1][:300]}" if said else ", without a word")
                + "."
            )
        found = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        raise errors.InputError(found["error"])
    return found


def watched(command: list, environment: dict, output, name: str) -> int:
    """Run a command to its end while telling for how long; returns its exit code."""
    screen, began = meter.Screen(), time.monotonic()
    # Ended from outside, too, the process that compiles must not stay behind.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not screen.live:
        screen.say(f"compiling for {name}")
    process = subprocess.Popen(
        command, env=environment, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        while True:
            passed = meter.duration(time.monotonic() - began)
            if screen.live:
                screen.draw(f"compiling for {name}  {passed}")
            try:
                code = process.wait(1)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
        process.wait()
        signal.signal(signal.SIGTERM, before)
    if screen.live:
        screen.draw("")
    screen.say(f"done with {name} after {passed}")
    return code


def write(path: pathlib.Path, found: dict) -> None:
    """Keep all that was found, whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing.replacing(path) as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
