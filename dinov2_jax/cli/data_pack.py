"""dinov2-jax data pack: any source as ArrayRecord shards, resumable and in parallel."""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors, lease
from dinov2_jax.cli import decoding, depths, workdir, workers
from dinov2_jax.data import decode, manifest, packing, rules, sources
from dinov2_jax.data.record import Source
from dinov2_jax.escaping import utf8
from dinov2_jax.train import progress

PARTS = ".parts"  # folder of the notes on shards that are done


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this action."""
    add = parser.add_argument
    workers.add_argument(parser)
    add("out", type=pathlib.Path, help="folder of the shards; the same goes on")
    # A shard is searched for each read, and its index held: see benchmarks/README.md.
    add("--shard-records", type=int, default=8192, help="default %(default)s")
    add("--longest", type=int, help="pixels; shrink images with a longer side")
    add("--quality", type=int, default=95, help="JPEG quality of shrunk images")
    add("--shuffle", type=int, metavar="SEED", help="write in a random order")
    add("--max-skipped", type=float, default=0.01, help="share that may be unreadable")
    decoding.add_arguments(parser)
    parser.set_defaults(max_pixels=None)


def main(options: argparse.Namespace) -> int:
    """Run the action; returns the exit code."""
    decoding.require(options)
    rules.of(options.range, options.damaged)  # refused before anything is opened
    if options.max_pixels is None:
        limits = decode.MAX_PIXELS, decoding.SHRINKABLE
        options.max_pixels = limits[options.longest is not None]
    folder = options.out.expanduser()
    utf8(folder, "ArrayRecord")
    if folder.exists() and not folder.is_dir():
        raise errors.InputError(f"{folder} is a file; give a folder for the shards.")
    with errors.at(folder, "OUT"):
        source = sources.open_source(options.source, cache_dir=folder / PARTS)
        if options.longest is not None:  # others keep their bytes
            told = rules.of(options.range, options.damaged)
            depths.tell(options.source, source, options.max_pixels, told)
        with lease.held(folder, "OUT"):
            return _pack(source, folder, options)


def _pack(source: Source, folder: pathlib.Path, options: argparse.Namespace) -> int:
    """Write the shards that are missing; returns the exit code."""
    told = rules.of(options.range, options.damaged)
    packer = packing.Packer(
        source,
        folder,
        options.shard_records,
        _order(len(source), options.shuffle),
        options.longest,
        options.quality,
        options.max_pixels,
        told,
    )
    _claim(packer, options)
    done = dict(_kept(packer))
    shown = progress.Progress(len(done), packer.shards, unit="shard")
    missing = [i for i in range(packer.shards) if i not in done]
    for number, written in workers.each(packer, missing, options.workers):
        note = json.dumps(dataclasses.asdict(written))
        workdir.write_text(folder / PARTS / f"{number:05}.json", note)
        done[number] = written
        records = sum(x.shard["records"] for x in done.values())
        shown.show(len(done), f"{records} records")
    return _finish(packer, [done[i] for i in range(packer.shards)], options)


def _order(records: int, seed: int | None) -> np.ndarray | None:
    """[n] the records in a random order; None as they are."""
    return None if seed is None else np.random.default_rng(seed).permutation(records)


def _claim(packer: packing.Packer, options: argparse.Namespace) -> None:
    """Makes the folder, or refuses one that holds something else."""
    settings = {
        "source": options.source,
        "records": len(packer.source),
        "shard_records": options.shard_records,
        "longest": options.longest,
        "quality": options.quality,
        "shuffle": options.shuffle,
        "max_pixels": options.max_pixels,
        "range": options.range,
        "damaged": options.damaged,
    }
    path = packer.folder / PARTS / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [
            f"{name} {before.get(name)!r} -> {value!r}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if other:
            raise errors.InputError(
                f"{packer.folder} was begun with other settings ({', '.join(other)}); "
                "use them, or another folder."
            )
    elif (packer.folder / manifest.NAME).exists():
        raise errors.InputError(
            f"{packer.folder} is packed already; choose another folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_text(path, json.dumps(settings))


def _kept(packer: packing.Packer) -> Iterator[tuple[int, packing.Written]]:
    """Shards that an earlier start has finished."""
    for number in range(packer.shards):
        note = packer.folder / PARTS / f"{number:05}.json"
        file = packer.folder / packer.name(number)
        if not note.exists() or not file.exists():
            continue
        found = packing.Written(**json.loads(note.read_text(encoding="utf-8")))
        if file.stat().st_size == found.shard["bytes"]:
            yield number, found


def _finish(
    packer: packing.Packer, done: list[packing.Written], options: argparse.Namespace
) -> int:
    """Writes the manifest and tells what was left out; returns the exit code."""
    folder, total = packer.folder, len(packer.source)
    skipped = [line for written in done for line in written.skipped]
    if skipped:
        lines = "".join(f"{index}\t{why}\n" for index, why in skipped)
        workdir.write_text(folder / "skipped.txt", lines)
        reasons = decoding.counted(x for written in done for x in written.reasons)
        print(
            f"{len(skipped)} of {total} records skipped{reasons}, see "
            f"{folder}/skipped.txt"
        )
    if len(skipped) > options.max_skipped * total:
        raise errors.InputError(
            f"{len(skipped)} of {total} records cannot be read, more than "
            f"--max-skipped={options.max_skipped}; see {folder}/skipped.txt. Mend the "
            "source and delete the folder, or allow more."
        )
    known = manifest.Manifest(
        format=manifest.FORMAT,
        records=sum(written.shard["records"] for written in done),
        classes=list(packer.source.classes),
        labelled=any(written.labelled for written in done),
        source=options.source,
        shards=[written.shard for written in done if written.shard["records"]],
    )
    if not known["records"]:
        raise errors.InputError(
            f"{options.source} has no readable record; nothing is packed."
        )
    for written in done:  # of a shard whose records are all unreadable nothing is left
        if not written.shard["records"]:
            (folder / written.shard["file"]).unlink(missing_ok=True)
    workdir.write_text(folder / manifest.NAME, json.dumps(known, indent=1) + "\n")
    shutil.rmtree(folder / PARTS)
    size = sum(shard["bytes"] for shard in known["shards"])
    shrunk = sum(written.shrunk for written in done)
    print(
        f"{folder}: {known['records']} records in {len(known['shards'])} shards, "
        f"{size / 2**20:.1f} MiB, {shrunk} shrunk; read it as arrayrecord:"
        f"{os.path.normpath(folder)}"
    )
    return 0
