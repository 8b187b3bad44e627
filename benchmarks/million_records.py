"""Starting on a million records: seconds and host memory, first and in the middle.

    python benchmarks/million_records.py --out=benchmarks/results/million_records.json

Packs tiny images once, as ArrayRecord by the packer of `dinov2-jax data pack` and as tar
shards, many and few. Each start is a process of its own, which opens the source, takes
one training batch and then some more; its memory is what the process does not share with
a file. Bytes a record: what a million take more than a few.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time

import numpy as np
from PIL import Image

from dinov2_jax.cli import workdir, workers
from dinov2_jax.data import draws, manifest, packing, pipeline, sources
from dinov2_jax.data.record import Record

CROP = draws.MultiCrop(global_size=16, local_size=8, local_number=2)
BATCH = 64
PER_TAR = 10_000


class Tiny:
    """n records of a few hundred different images of 16 x 16 pixels."""

    classes = ("a", "b")

    def __init__(self, n: int):
        self.n, self.images, rng = n, [], np.random.default_rng(0)
        for _ in range(256):
            out = io.BytesIO()
            pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(out, "JPEG")
            self.images.append(out.getvalue())

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index % 256], index % 2)

    def name(self, index: int) -> str:
        return f"tiny {index}"


def options() -> argparse.Namespace:
    """Sizes of the task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs=2, default=[20_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=20, help="batches after the first")
    parser.add_argument("--start", help="SPEC: start here, and print what it took")
    parser.add_argument("--at", type=int, default=0, help="step to start at")
    parser.add_argument("--cache", type=pathlib.Path, help="of lists, for --start")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def write_arrays(folder: pathlib.Path, n: int) -> str:
    """Packed shards and their manifest; their spec."""
    folder.mkdir()
    packer = packing.Packer(Tiny(n), folder, 8192)
    numbers = range(packer.shards)
    made = dict(workers.each(packer, numbers, os.cpu_count()))
    shards = [made[number].shard for number in numbers]
    known = manifest.Manifest(
        format=manifest.FORMAT,
        records=n,
        classes=list(Tiny.classes),
        labelled=True,
        source="tiny",
        shards=shards,
    )
    workdir.write_text(folder / manifest.NAME, json.dumps(known))
    return f"arrayrecord:{folder}"


def write_tars(folder: pathlib.Path, n: int) -> str:
    """Tar shards; their spec."""
    folder.mkdir()
    source = Tiny(n)
    for start in range(0, n, PER_TAR):
        with tarfile.open(folder / f"{start // PER_TAR:04}.tar", "w") as out:
            for index in range(start, min(start + PER_TAR, n)):
                record = source[index]
                name = f"{source.classes[record.label]}/{index:08}.jpg"
                info = tarfile.TarInfo(name)
                info.size = len(record.image)
                out.addfile(info, io.BytesIO(record.image))
    return f"tar:{folder}/*.tar"


def anonymous() -> int:
    """Bytes of memory that are this process's own."""
    lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith("Anonymous:")) * 1024


def start(spec: str, step: int, cache: pathlib.Path, steps: int) -> dict[str, float]:
    """What one start takes, in this process."""
    before, began = anonymous(), time.perf_counter()
    source = sources.open_source(spec, cache_dir=cache)
    opened = time.perf_counter() - began
    batches = pipeline.train_batches(
        source,
        multicrop=CROP,
        patch_size=8,
        mask_probability=0.5,
        mask_ratio=(0.1, 0.5),
        seed=0,
        batch_size=BATCH,
        group_size=BATCH,
        start=step,
        stop=step + steps + 1,
    )
    next(batches)
    first = time.perf_counter() - began
    for _ in batches:
        pass
    rate = steps * BATCH / (time.perf_counter() - began - first)
    return {
        "open_s": opened,
        "first_batch_s": first,
        "images_per_s": rate,
        "own_memory": anonymous() - before,
    }


def started(spec: str, step: int, cache: pathlib.Path, steps: int) -> dict[str, float]:
    """What one start takes, in a new process."""
    line = [sys.executable, __file__, f"--start={spec}", f"--at={step}"]
    line += [f"--cache={cache}", f"--steps={steps}"]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    o = options()
    if o.start:
        print(json.dumps(start(o.start, o.at, o.cache, o.steps)))
        return
    few, many = o.records
    rows, found = {}, {"cores": os.cpu_count(), "records": many, "few": few}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for kind, write in (("arrayrecord", write_arrays), ("tar", write_tars)):
            began = time.perf_counter()
            spec = write(folder / kind, many)
            found[f"{kind}_write_s"] = time.perf_counter() - began
            cache = folder / "lists"
            small = write(folder / f"{kind}-few", few)
            started(small, 0, cache, o.steps)
            less = started(small, 0, cache, o.steps)["own_memory"]
            for name, step in (("first start", 0), ("restart", many // BATCH // 2)):
                row = started(spec, step, cache, o.steps)
                row["bytes_per_record"] = (row["own_memory"] - less) / (many - few)
                rows[f"{kind}, {name}"] = row
                print(
                    f"{kind:<12} {name:<12} open {row['open_s']:6.2f} s, first batch "
                    f"{row['first_batch_s']:6.2f} s, {row['images_per_s']:6.0f} images/s"
                    f", {row['bytes_per_record']:5.1f} bytes a record"
                )
    if o.out:
        workdir.write_text(o.out, json.dumps(found | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
