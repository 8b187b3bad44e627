"""Time one DINOv2 training step here and in PyTorch, in pairs, and compare losses.

python benchmarks/step_vs_torch.py [--variant S/14] [--batch 8] [--repeats 5]

Both sides start from the same weights, see the same batch and read the same schedule
values, so their losses agree to rounding for as many steps as are run. Each side lives
in a process of its own, so that the thread pools of XLA and of PyTorch never wait for
one another and each has its own peak memory; the processes take turns (ours, theirs,
ours, theirs), and the one whose turn it is not sleeps. What else the machine does then
falls on both, and the median of the ratios of pairs says little about it.
"""

import argparse
import functools
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import numpy as np

from dinov2_jax import config as base

TERMS = ("dino_local", "dino_global", "koleo", "ibot", "total")
TOLERANCE = 1e-4  # of a loss near 20: float32 rounding, summed in another order


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="S/14", help="SIZE/PATCH, not g")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--repeats", type=int, default=5, help="timed pairs")
    parser.add_argument("--threads", type=int, default=0, help="0: all of this process")
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--prototypes", type=int, default=65_536)
    parser.add_argument("--unroll", type=int, default=1, help="blocks a scan iteration")
    parser.add_argument("--json", type=pathlib.Path, help="file for all numbers")
    chosen = parser.parse_args()
    usable = len(os.sched_getaffinity(0))
    chosen.threads = chosen.threads or usable
    if not 1 <= chosen.threads <= usable or chosen.batch < 2 or chosen.repeats < 1:
        parser.error(
            f"--threads={chosen.threads} must be 1 to {usable}, --batch={chosen.batch} "
            f"2 or more (KoLeo needs a neighbour), --repeats={chosen.repeats} 1 or more"
        )
    return chosen


def settings(chosen: argparse.Namespace):
    """The package's config of the measured step."""
    config = base.default()
    config.crops.local_size = 98
    config.model.update(variant=chosen.variant, drop_path=chosen.drop_path)
    # At 1e-5 the cls tokens of fresh networks are equal but for rounding, and KoLeo,
    # a logarithm of their distance, would compare that rounding.
    config.model.layerscale = 1.0
    config.mesh.unroll = chosen.unroll
    config.head.prototypes = chosen.prototypes
    config.optim.update(warmup=0, freeze_last_layer=0)
    config.train.update(
        dtype="float32",
        batch_size=chosen.batch,
        group_size=chosen.batch,
    )
    return config


def plain_settings(config) -> dict:
    """The same settings as the plain values that the PyTorch side takes."""
    from dinov2_jax.models import vit

    sections = (config.head, config.loss, config.optim)
    known = {key: value for section in sections for key, value in section.items()}
    size = {"ffn": "mlp"} | vit.variant(config.model.variant)
    size["depth"] = config.model.depth or size["depth"]
    return (
        known
        | size
        | {
            "global_size": config.crops.global_size,
            "drop_path": config.model.drop_path,
            "layerscale": config.model.layerscale,
        }
    )


def synthetic_batch(config) -> dict[str, np.ndarray]:
    """Blocks of random colours with noise, and masks drawn as in training."""
    from dinov2_jax.data import masks
    from dinov2_jax.models import vit

    rng, c = np.random.default_rng(0), config.crops
    patch = vit.variant(config.model.variant)["patch_size"]

    def crops(number: int, size: int) -> np.ndarray:
        shape = (config.train.batch_size, number, size, size, 3)
        coarse = rng.standard_normal((*shape[:2], -(-size // 16), -(-size // 16), 3))
        coarse = coarse.repeat(16, 2).repeat(16, 3)[:, :, :size, :size]
        return (coarse + 0.2 * rng.standard_normal(shape)).astype(np.float32)

    side, rows = c.global_size // patch, config.train.batch_size * c.global_number
    share, ratio = config.masks.probability, config.masks.ratio
    largest = masks.max_block(c.global_size, patch)
    drawn = masks.draw(rng, rows, (side, side), share, ratio, max_patches=largest)
    return {
        "global_crops": crops(c.global_number, c.global_size),
        "local_crops": crops(c.local_number, c.local_size),
        "masks": drawn.reshape(-1, c.global_number, side * side),
        "capacity": np.array(masks.upper_bound(rows, side * side, share, ratio)),
    }


class Clock:
    """Wall and processor seconds of all threads since its start."""

    def __init__(self):
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both, as `wall` and `cpu`."""
        now = time.perf_counter(), time.process_time()
        return {k: b - a for k, a, b in zip(("wall", "cpu"), self.start, now)}


def peak_memory() -> float:
    """Largest resident size of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def serve_ours(pipe, config, arrays: dict, weights: pathlib.Path, threads: int) -> None:
    """This package's side: compile, write its weights, then one step a message."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from dinov2_jax.cli import assemble
    from dinov2_jax.convert import names
    from dinov2_jax.data import batch as contract
    from dinov2_jax.train import state as states
    from dinov2_jax.train import step

    model = assemble.model(config)
    initial = functools.partial(assemble.initial_params, config, model)
    params = jax.jit(initial)(jax.random.key(0))
    patch = model.backbone.patch_size
    official = {
        f"{part}.{name}": value
        for part, found in (
            ("backbone", names.backbone_to_official(params["backbone"], patch)),
            ("dino_head", names.head_to_official(params["dino_head"])),
        )
        for name, value in found.items()
    }
    np.savez(weights, **official)
    flat = arrays["masks"].reshape(1, -1, arrays["masks"].shape[-1])
    views = arrays["masks"].shape[1]
    packed = contract.pack_masks(flat, views, int(arrays["capacity"]))
    crops = arrays["global_crops"], arrays["local_crops"]
    batch = jax.device_put(contract.Batch(*crops, *packed))
    recipe = assemble.recipe(config, model, params)
    number = assemble.prototypes(config)
    state = jax.jit(lambda p: states.create(p, p, recipe.tx, number))(params)
    del params, official
    clock = Clock()
    update = jax.jit(functools.partial(step.train_step, recipe), donate_argnums=0)
    update = update.lower(state, batch).compile()
    pipe.send(clock.read() | {"version": f"jax {jax.__version__}"})
    while pipe.recv() is not None:
        clock = Clock()
        state, terms = jax.block_until_ready(update(state, batch))
        measured = clock.read()
        terms = {name: float(value) for name, value in terms.items()}
        kept = {name: terms[f"loss/{name}"] for name in TERMS}
        now = {k[6:]: v for k, v in terms.items() if k.startswith("sched/")}
        pipe.send(measured | {"losses": kept, "now": now, "memory": peak_memory()})


def serve_torch(
    pipe, plain: dict, arrays: dict, weights: pathlib.Path, threads: int
) -> None:
    """The PyTorch side: one step a message, which brings the schedules' values."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch
    import torch_reference

    torch.set_num_threads(threads)
    peer = torch_reference.Peer(plain, np.load(weights))
    batch = torch_reference.Batch.of(arrays)
    pipe.send({"version": f"torch {torch.__version__}"})
    while (now := pipe.recv()) is not None:
        clock = Clock()
        losses = {name: x.item() for name, x in peer.step(batch, now).items()}
        pipe.send(clock.read() | {"losses": losses, "memory": peak_memory()})


def receive(pipe, name: str) -> dict:
    """The next report of one side, or the end of this run if it has failed."""
    try:
        return pipe.recv()
    except EOFError:
        sys.exit(f"The {name} side has stopped; its error stands above.")


def start(serve, *args) -> tuple:
    """A fresh process that serves steps, our end of its pipe, and its first report."""
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe()
    process = spawn.Process(target=serve, args=(its, *args), daemon=True)
    process.start()
    its.close()
    return mine, receive(mine, serve.__name__.removeprefix("serve_"))


def measure(chosen: argparse.Namespace) -> dict:
    """All numbers: what each side reported, first (untimed) step first."""
    config = settings(chosen)
    plain, arrays = plain_settings(config), synthetic_batch(config)
    with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder) / "weights.npz"
        ours, built = start(serve_ours, config, arrays, weights, chosen.threads)
        theirs, found = start(serve_torch, plain, arrays, weights, chosen.threads)
    pairs = []
    for _ in range(1 + chosen.repeats):
        ours.send(True)
        first = receive(ours, "ours")
        theirs.send(first.pop("now"))
        pairs.append((first, receive(theirs, "torch")))
    for pipe in (ours, theirs):
        pipe.send(None)
    return {
        "settings": vars(chosen) | {"json": None},
        "versions": [built.pop("version"), found["version"]],
        "compile": built,
        "ours": [pair[0] for pair in pairs],
        "torch": [pair[1] for pair in pairs],
    }


def report(found: dict) -> float:
    """Print the table; the largest difference of a first step's losses."""
    sides = found["ours"], found["torch"]
    print(f"{'':24}{'ours':>12}{'torch':>12}{'ours/torch':>12}")

    def row(name: str, values: list[float], ratio: float | None = None) -> None:
        cells = "".join(f"{value:12.5g}" for value in values)
        print(f"{name:24}{cells}" + ("" if ratio is None else f"{ratio:12.2f}"))

    for unit in ("wall", "cpu"):
        timed = [[one[unit] for one in side[1:]] for side in sides]
        found[f"{unit}_ratio"] = statistics.median(a / b for a, b in zip(*timed))
        middle = [statistics.median(side) for side in timed]
        row(f"{unit} seconds a step", middle, found[f"{unit}_ratio"])
    memory = [side[-1]["memory"] for side in sides]
    row("peak memory, GiB", memory, memory[0] / memory[1])
    middle = [statistics.median(one["wall"] for one in side[1:]) for side in sides]
    warm = sides[1][0]["wall"] - middle[1]
    row("compile or warm-up, s", [found["compile"]["wall"], max(warm, 0.0)])
    for name in TERMS:
        row(f"first {name}", [side[0]["losses"][name] for side in sides])
    row(
        f"total after {len(sides[0]) - 1} updates",
        [s[-1]["losses"]["total"] for s in sides],
    )
    print(f"ratio ours/torch: {found['wall_ratio']:.2f}")
    return max(abs(a - b) for a, b in zip(*(s[0]["losses"].values() for s in sides)))


def main() -> None:
    """Measure, print, save, and fail where the two sides do not agree."""
    chosen = arguments()
    found = measure(chosen)
    apart = report(found)
    if chosen.json:
        part = chosen.json.with_name(chosen.json.name + ".part")
        part.write_text(json.dumps(found, indent=2))
        os.replace(part, chosen.json)
    if not chosen.drop_path and not apart <= TOLERANCE:
        sys.exit(f"The first step's losses differ by {apart:.2g}, over {TOLERANCE:g}.")


if __name__ == "__main__":
    main()
