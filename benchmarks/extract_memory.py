"""Host memory of taking features, of few images and of many.

    python benchmarks/extract_memory.py --out=benchmarks/results/extract_memory.json

Each number of images is a process of its own, whose peak of resident memory is
printed; the aim is at most 1.5 GB more for 100,000 than for 1,000.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from dinov2_jax.cli import evaluate, frozen, workdir
from dinov2_jax.data import sources
from dinov2_jax.models import vit


def options() -> argparse.Namespace:
    """Sizes of the task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--side", type=int, default=32, help="pixels of an image")
    parser.add_argument("--one", type=int, help="measure this number here")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def measured(number: int, side: int) -> dict:
    """Peak memory and time of this process for so many images."""
    model = vit.ViT(
        width=384, depth=2, heads=6, patch_size=8, image_size=side, layerscale=1.0
    )
    images = np.zeros((1, side, side, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    backbone = frozen.Backbone(model, params, "random")
    tiles = sources.open_source("demo:train")
    source = sources.Subset(tiles, np.arange(number) % len(tiles))
    wanted = evaluate.settings("knn", {"resize": side, "crop": side})
    apply, began = frozen.cls_of(backbone, "float32"), time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        found = frozen.features(
            backbone, apply, "cls", "demo:train", pathlib.Path(cache), wanted, source
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "images": len(found.rows),
        "width": found.rows.shape[1],
        "peak_gb": peak * 1024 / 1e9,
        "images_per_s": number / (time.perf_counter() - began),
    }


def main() -> None:
    """Measure each number in a process of its own."""
    given = options()
    if given.one:
        print(json.dumps(measured(given.one, given.side)))
        return
    rows = []
    for number in given.images:
        command = [sys.executable, __file__, f"--one={number}", f"--side={given.side}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "cores": os.cpu_count(),
        "side": given.side,
        "rows": rows,
        "more_gb": rows[-1]["peak_gb"] - rows[0]["peak_gb"],
    }
    print(json.dumps(result, indent=2))
    if given.out:
        workdir.write_text(given.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
