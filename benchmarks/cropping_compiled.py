"""Cutting crops on devices that are not at hand: what their compiler says of it.

    pip install -e '.[tpu]'
    python benchmarks/cropping_compiled.py --topology=v5e:2x2 \\
        --json=benchmarks/results/cropping_v5e.json

Prints operations, memory traffic and the compiler's estimate of the time for one image,
working memory, and the collectives, of which there must be none.
"""

import argparse
import functools
import json
import pathlib

import jax
import numpy as np
from jax.sharding import NamedSharding

from dinov2_jax import cropping, sharding
from dinov2_jax.cli import workdir
from dinov2_jax.data import draws
from dinov2_jax.plan import topologies

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2", help=topologies.known())
    parser.add_argument("--images", type=int, default=64, help="a device")
    parser.add_argument("--block", type=int, default=8, help="images at a time")
    parser.add_argument("--canvas", type=int, default=512, help="pixels")
    parser.add_argument("--json", type=pathlib.Path)
    o = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    chosen = topologies.parse(o.topology)
    topologies.require_compiler(chosen)
    devices = topologies.describe(chosen)
    mesh, crop = sharding.make_mesh(1, devices), draws.MultiCrop()
    rows = NamedSharding(mesh, sharding.BATCH)
    batch = o.images * len(devices)
    numbers = np.zeros((batch, 10, draws.NUMBERS))
    made = crop.draws(numbers, np.full(batch, 375), np.full(batch, 500))
    images = np.broadcast_to(np.uint8(0), (batch, o.canvas, o.canvas, 3))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), (images, made)
    )
    cut = functools.partial(cropping.views, multicrop=crop, block=o.block)
    spec = sharding.BATCH
    program = jax.jit(jax.shard_map(cut, mesh=mesh, in_specs=spec, out_specs=spec))
    compiled = program.lower(*shapes).compile()
    cost, text = compiled.cost_analysis() or {}, compiled.as_text()

    def each(name: str, unit: float) -> float | None:
        """Of one image; None where the compiler does not say."""
        return cost[name] / o.block / unit if name in cost else None

    # The loop over blocks is counted once, and so is what it does for one block.
    found = {
        "topology": o.topology,
        "images_per_device": o.images,
        "block": o.block,
        "gflop_per_image": each("flops", 1e9),
        "mb_moved_per_image": each("bytes accessed", 1e6),
        "estimated_ms_per_image": each("optimal_seconds", 1e-3),
        "working_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "collectives": [c for c in COLLECTIVES if f"{c}(" in text or f"{c}-st" in text],
    }
    print(json.dumps(found, indent=2))
    if o.json:
        workdir.write_text(o.json, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
