"""dinov2-jax bench step: time the training step on the devices at hand.

Batches are synthetic and already on the devices. Each batch size runs in a process of
its own, so that one that does not fit, or crashes, ends nothing else.
"""

import argparse
import json
import logging
import multiprocessing
import pathlib
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax import config as settings
from dinov2_jax import errors, writing
from dinov2_jax.cli import timing, workdir

FULL = ("resource_exhausted", "out of memory")
"""What is said, in small letters, of a program that the memory does not hold."""

COLUMNS = {
    "batch/device": ("batch_per_device", 1, "d"),
    "images/s": ("images_per_s", 1, ".1f"),
    "step ms": ("step_median_s", 1e3, ".1f"),
    "p90 ms": ("step_p90_s", 1e3, ".1f"),
    "MFU nominal": ("mfu_nominal", 1, ".1%"),
    "MFU executed": ("mfu_executed", 1, ".1%"),
    "peak GiB": ("memory_bytes", 2**-30, ".2f"),
    "compile s": ("compile_s", 1, ".1f"),
}
"""Heading -> (field of a result, factor, format)."""


def arguments(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the `--config.x=y` overrides without their prefix.

    Raises: ConfigError for an option that does not exist.
    """
    parser = argparse.ArgumentParser(
        prog="dinov2-jax bench",
        allow_abbrev=False,
        description=__doc__,
        epilog="Any setting: --config.SECTION.KEY=VALUE, such as "
        "--config.mesh.remat=full; all are in dinov2_jax/config.py.",
    )
    parser.add_argument("what", choices=["step"])
    parser.add_argument(
        "--config", required=True, help="config file, PATH or PATH:ARGUMENT"
    )
    parser.add_argument(
        "--batch-per-device",
        type=_sizes,
        default=[],
        help="images, as 8,16,32; without it they double until memory ends, or until "
        "the config's own batch is reached",
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps; default 10")
    parser.add_argument("--json", type=_path, help="file for all numbers")
    parser.add_argument("--trace", type=_path, help="folder for a profile of 3 steps")
    options, rest = parser.parse_known_args(given)
    if options.steps < 1:
        parser.error(f"--steps={options.steps} must be 1 or more")
    return options, settings.overrides(rest)


def _path(text: str) -> pathlib.Path:
    """A path, `~` being the home."""
    return pathlib.Path(text).expanduser()


def _sizes(text: str) -> list[int]:
    """Ascending batch sizes of `8,16,32`."""
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes like 8,16,32")
    return sizes


def main(given: list[str]) -> int:
    """Run the command; returns the exit code: 0 if any batch size was timed."""
    options, overrides = arguments(given)
    config = settings.load(options.config, overrides)
    if options.json and not options.json.parent.is_dir():
        raise errors.InputError(
            f"--json={options.json}: its folder does not exist; make it."
        )
    if options.json:
        with errors.at(options.json, "--json"):
            writing.check(options.json)
    found = {
        "command": shlex.join(["dinov2-jax", "bench", *given]),
        "versions": workdir.versions(),
        "config": config.to_dict(),
        "results": [],
    }

    def one(size: int) -> dict[str, Any]:
        trace = options.trace and options.trace / f"batch_{size}"
        work = (timing.measure, config, size, options.steps, trace)
        return result_of(size, *in_a_process(*work))

    t = config.train
    for result in sweep(one, options.batch_per_device, t.group_size, t.batch_size):
        if result.get("process"):  # the first process tells
            continue
        if not found["results"]:
            print(heading(config, result))
        found["results"].append(result)
        print(row(result), flush=True)
        if options.json:
            with errors.at(options.json, "--json"):
                workdir.write_text(options.json, json.dumps(found, indent=2) + "\n")
    return 0 if any(result["fits"] for result in found["results"]) else 1


def sweep(
    one: Callable[[int], dict[str, Any]], sizes: Sequence[int], group: int, most: int
) -> Iterator[dict[str, Any]]:
    """One result a batch size, up to the first that does not fit.

    Args:
        one: (images a device) -> what is found of them, see `result_of`.
        sizes: to try; without any they double, and once halve the last gap.
        group: of the config, which doubling keeps in step with.
        most: images of all devices where doubling stops.
    Raises: ValueError if sizes should double on devices whose memory has no end that
        could be seen.
    """
    for size in sizes:
        yield (result := one(size))
        if not result["fits"]:
            return
    if sizes:
        return
    size, good = first_size(group), 0
    while (result := one(size))["fits"]:
        yield result
        if result["memory_of"] == "process":
            raise errors.InputError(
                f"{result['device']} does not tell how much memory it has, so batch "
                "sizes do not double there; name them, as in --batch-per-device=8,16."
            )
        size, good = 2 * size, size
        if size * result["devices"] > most:
            return
    yield result
    if good and result["end"] == "full":
        yield one((good + size) // 2)


def first_size(group: int) -> int:
    """Where doubling starts: 8 or a little more, in step with the size of a group."""
    while group % 2 == 0 and group > 12:
        group //= 2
    while group < 8:
        group *= 2
    return group


def in_a_process(work: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    """What becomes of some work in a fresh process.

    Args:
        work: a function of a module.
        args: for it.
    Returns: ("done", what it returns), ("full", why) where memory ended, or ("failed",
        why) where the process stopped in any other way.
    Raises: ValueError if it raises an error of this package.
    """
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe(duplex=False)
    process = spawn.Process(target=serve, args=(its, work, args), daemon=True)
    process.start()
    its.close()
    try:
        end, value = mine.recv()
    except EOFError:
        process.join()
        return ended(process.exitcode)
    process.join()
    if end == "refused":
        raise errors.InputError(value)
    return end, value


def serve(pipe: Any, work: Callable[..., Any], args: tuple) -> None:
    """Do the work, and say how that ended: done, full, refused."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        pipe.send(("done", work(*args)))
    except MemoryError as error:
        pipe.send(("full", f"{error}" or "out of memory"))
    except RuntimeError as error:  # JAX's and PyTorch's are such ones
        if not any(words in str(error).lower() for words in FULL):
            raise
        pipe.send(("full", str(error).partition("\n")[0]))
    except errors.Error as error:
        pipe.send(("refused", str(error)))


def result_of(size: int, end: str, value: Any) -> dict[str, Any]:
    """What is kept of a batch size: its figures, or why there are none."""
    if end == "done":
        return value.figures()
    return {"batch_per_device": size, "fits": False, "end": end, "why": value}


def ended(code: int) -> tuple[str, str]:
    """How a process ended that said nothing."""
    if code == -signal.SIGKILL:
        return "full", "ended by SIGKILL, as where the machine's memory ends"
    if code < 0:
        return "failed", f"ended by {signal.Signals(-code).name}"
    return "failed", f"ended with code {code}; its error stands above"


def heading(config: ConfigDict, result: dict[str, Any]) -> str:
    """What is timed, and the names of the columns."""
    m = config.mesh
    devices = f"; {result['device']} x {result['devices']}" if result["fits"] else ""
    about = (
        f"{config.model.variant}, {config.train.dtype}, remat {m.remat}, "
        f"attention {m.attention}, unroll {m.unroll}{devices}"
    )
    return f"{about}\n" + "".join(f"{name:>14}" for name in COLUMNS)


def row(result: dict[str, Any]) -> str:
    """A line of the table, or why there is none."""
    if not result["fits"]:
        said = "does not fit" if result["end"] == "full" else "failed"
        return f"{result['batch_per_device']:>14}  {said}: {result['why']}"
    cells = []
    for field, factor, form in COLUMNS.values():
        value = result[field]
        cells.append("unknown" if value is None else f"{value * factor:{form}}")
    return "".join(f"{cell:>14}" for cell in cells)
