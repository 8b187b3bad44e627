"""dinov2-jax data check: every record read and decoded, every packed shard summed."""

import argparse
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from dinov2_jax import errors, writing
from dinov2_jax.cli import data, decoding, depths, workdir, workers
from dinov2_jax.data import decode, faults, manifest, rules, sources
from dinov2_jax.data.reading import Reader
from dinov2_jax.data.record import Source
from dinov2_jax.escaping import escaped, shown
from dinov2_jax.train import progress

CHUNK = 1024  # records of a job
SHOWN = 20  # lines on the screen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this action."""
    add = parser.add_argument
    workers.add_argument(parser)
    add("--no-decode", action="store_true", help="read, but do not decode")
    add("--out", type=pathlib.Path, help="file for the names of all bad records")
    decoding.add_arguments(parser)
    parser.set_defaults(damaged="skip")


def main(options: argparse.Namespace) -> int:
    """Run the action; returns the exit code, 1 if anything is wrong."""
    decoding.require(options)
    told = rules.of(options.range, options.damaged)
    if options.out:
        with errors.at(options.out, "--out"):
            writing.check(options.out)
    job = Check(None if options.no_decode else options.max_pixels, told)
    spec = data.spec(options.source)
    bad, records, reasons = [], 0, []
    try:
        for part, _ in sources.split(spec):
            bad += _bad_shards(part, options.workers)
        source = sources.open_source(spec)
        records = len(source)
        bad += sources.faults(source)
        if job.max_pixels is not None:
            depths.tell(spec, source, job.max_pixels, told)
        for line, reason in _bad_records(source, options.workers, job):
            bad.append(line)
            reasons.append(reason)
    except faults.Refused as error:
        bad += map(shown, error.lines)
    except errors.Error as error:
        if not bad:
            raise
        bad.append(shown(str(error)))
    for line in bad[:SHOWN]:
        print(line)
    if len(bad) > SHOWN:
        print(f"... and {len(bad) - SHOWN} more" + (" in --out" if options.out else ""))
    if options.out:
        with errors.at(options.out, "--out"):
            workdir.write_text(options.out, "".join(f"{line}\n" for line in bad))
    counted = decoding.counted(reasons)
    print(f"{shown(spec)}: {records} records, {len(bad)} bad{counted}")
    return int(bool(bad))


def _bad_shards(spec: str, number: int) -> Iterator[str]:
    """The shards of a packed folder that are not those of its manifest."""
    folder = pathlib.Path(spec.removeprefix("arrayrecord:")).expanduser()
    packed = spec.startswith("arrayrecord:") and (folder / manifest.NAME).exists()
    if not packed:
        return
    shards = manifest.read(folder)["shards"]
    paths = [folder / shard["file"] for shard in shards]
    sums = _each(_digest, paths, number, "shard")
    for shard, digest in zip(shards, sums, strict=True):
        file = escaped(folder / shard["file"])
        if isinstance(digest, OSError):
            yield f"{file}: cannot be read ({digest.strerror})"
        elif digest != shard["sha256"]:
            yield f"{file}: its SHA-256 is not that of the manifest"
    for path in sorted(set(folder.glob("*.arrayrecord")) - set(paths)):
        yield f"{escaped(path)}: no shard of the manifest"


@dataclasses.dataclass(frozen=True)
class Check:
    """How records are checked: `max_pixels` and `rules` as decode.decode.

    `max_pixels` None reads records and decodes none.
    """

    max_pixels: int | None
    rules: decode.Rules


def _bad_records(source: Source, number: int, check: Check) -> list[tuple[str, str]]:
    """The records that cannot be read, or decoded, each with the reason in a word."""
    starts = range(0, len(source), CHUNK)
    job = functools.partial(_bad_of, source, check)
    return [line for lines in _each(job, starts, number, "part") for line in lines]


def _bad_of(source: Source, check: Check, start: int) -> list[tuple[str, str]]:
    """The bad records among CHUNK from `start`."""
    found, reader = [], Reader(source)
    for index in range(start, min(start + CHUNK, len(source))):
        try:
            record, _ = reader.record(index)
            if check.max_pixels is not None:
                decode.decode(
                    record.image, max_pixels=check.max_pixels, rules=check.rules
                )
        except (OSError, decode.DecodeError) as error:
            line = f"{index}\t{source.name(index)}: {shown(str(error))}"
            found.append((line, rules.reason(error)))
    return found


def _digest(path: os.PathLike) -> str | OSError:
    """The SHA-256 of a file, or why it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return error


def _each(job: Callable[[Any], Any], items, number: int, unit: str) -> list[Any]:
    """A job for each item, side by side, with progress; results in their order."""
    shown, found = progress.Progress(0, len(items), unit=unit), {}
    for item, result in workers.each(job, items, number):
        found[item] = result
        if shown.live or len(found) % max(len(items) // 10, 1) == 0:
            shown.show(len(found), "")
    return [found[item] for item in items]
