"""Training steps of ViT-S/B/L/g on one GPU, here and in PyTorch, in one run.

python benchmarks/step_gpu.py --json benchmarks/results/step_gpu.json

Our side is `dinov2-jax bench step`, function for function; the other is the step of
`torch_reference.py` with fused attention, autocast and torch.compile. A run is one
process that has the device to itself. Every result is kept in the file of --json as
soon as it is there, and the same command goes on after the last one. It runs on a
CPU too, with sizes to suit:

python benchmarks/step_gpu.py --variants Ti/14 --depth 2 --batches 2,4 \
    --attention xla --remat none,full --unroll 1,2 --dtype float32 \
    --prototypes 1024 --steps 3 --json out.json
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence

import step_vs_torch
from ml_collections import ConfigDict

from dinov2_jax import flops
from dinov2_jax.cli import assemble, bench, timing, workdir

NOW = {
    "lr": 1e-4,
    "last_layer_lr": 1e-4,
    "weight_decay": 0.04,
    "ema_rate": 0.008,
    "teacher_temp": 0.04,
}
"""Schedules' values for the PyTorch side; no time depends on them."""


def arguments() -> argparse.Namespace:
    """The command line; lists are split at commas."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def words(name: str, default: str, text: str) -> None:
        parser.add_argument(
            name, default=default, type=lambda t: t.split(","), help=text
        )

    words("--variants", "S/14,B/14,L/14,g/14", "SIZE/PATCH")
    words("--batches", "16,32,64,128,256", "images, ascending, tried until memory ends")
    words("--attention", "xla,cudnn", "of ours")
    words("--remat", "none,dots,full", "of ours")
    words("--unroll", "1,2,4", "of ours; all but the first only at the fastest rest")
    words("--modes", "eager,default", "of PyTorch: eager, or a mode of torch.compile")
    words("--sides", "ours,torch", "what is run")
    parser.add_argument("--depth", type=int, default=0, help="0: the variant's own")
    parser.add_argument("--dtype", default="bfloat16", help="or float32")
    parser.add_argument("--drop-path", type=float, default=0.3)
    parser.add_argument("--prototypes", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a run")
    parser.add_argument("--json", type=pathlib.Path, required=True)
    chosen = parser.parse_args()
    chosen.batches = sorted(map(int, chosen.batches))
    chosen.unroll = [int(number) for number in chosen.unroll]
    return chosen


def settings(chosen: argparse.Namespace, variant: str) -> ConfigDict:
    """The package's config of a variant: 2 crops of 224 and 8 of 98 pixels."""
    given = {"variant": variant, "drop_path": chosen.drop_path, "batch": 2, "unroll": 1}
    config = step_vs_torch.settings(
        argparse.Namespace(**given, prototypes=chosen.prototypes)
    )
    config.model.depth = chosen.depth
    # As large as a group can be: KoLeo looks at the whole batch on the other side too.
    config.train.update(dtype=chosen.dtype, group_size=1 << 20)
    return config


def time_torch(config: ConfigDict, size: int, steps: int, mode: str) -> timing.Timing:
    """The PyTorch step with so many images; its first two count as compilation."""
    import torch
    import torch_reference

    config.train.update(batch_size=size, group_size=size)
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    arrays = step_vs_torch.synthetic_batch(config)
    batch = torch_reference.Batch.of(arrays).to(device)
    peer = torch_reference.Peer(
        step_vs_torch.plain_settings(config),
        device=device,
        dtype=config.train.dtype,
        compiled="" if mode == "eager" else mode,
    )
    began = time.perf_counter()
    loss = peer.step(batch, NOW)["total"].item()
    peer.step(batch, NOW)["total"].item()  # centres exist now: it compiles once more
    compiled = time.perf_counter() - began
    ends = []
    for _ in range(timing.WARM + steps):
        peer.step(batch, NOW)
        if cuda:  # the clock of the device, which need not wait for this process
            ends.append(torch.cuda.Event(enable_timing=True))
            ends[-1].record()
        else:
            ends.append(time.perf_counter())
    if cuda:
        torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kind = torch.cuda.get_device_name() if cuda else "cpu"
    return timing.Timing(
        kind=kind,
        devices=1,
        process=0,
        batch=size,
        group=size,
        compile_s=compiled,
        step_s=tuple(
            a.elapsed_time(b) / 1e3 if cuda else b - a
            for a, b in itertools.pairwise(ends[timing.WARM - 1 :])
        ),
        memory=memory,
        memory_of="device" if cuda else "process",
        flops=timing.operations(config, assemble.model(config)),
        peak=flops.peak(kind) if config.train.dtype == "bfloat16" else None,
        loss=loss,
    )


class Runs:
    """The results so far, in a file that is always whole."""

    def __init__(self, chosen: argparse.Namespace):
        """Go on with the file, where it was made with the same settings."""
        kept = ("depth", "dtype", "drop_path", "prototypes", "steps")
        about = {name: getattr(chosen, name) for name in kept}
        self.path, self.steps = chosen.json, chosen.steps
        self.found = {"settings": about, "versions": workdir.versions(), "runs": []}
        if self.path.exists():
            self.found = json.loads(self.path.read_text())
            if self.found["settings"] != about:
                sys.exit(f"{self.path} was made with {self.found['settings']}.")

    def sweep(
        self, config: ConfigDict, side: str, batches: Sequence[int], **options
    ) -> Iterator[dict]:
        """One result a batch size that fits, until memory ends."""
        for size in batches:
            key = {"side": side, "variant": config.model.variant} | options
            run = self._known(key, size) or self._run(config, key, size)
            if not run["fits"]:
                return
            yield run

    def _known(self, key: dict, size: int) -> dict | None:
        """A result of an earlier run of this command."""
        wanted = key | {"batch_per_device": size}
        hits = [run for run in self.found["runs"] if wanted.items() <= run.items()]
        return hits[0] if hits else None

    def _run(self, config: ConfigDict, key: dict, size: int) -> dict:
        """A new result, printed and kept."""
        config = config.copy_and_resolve_references()
        if key["side"] == "ours":
            names = ("attention", "remat", "unroll")
            config.mesh.update({name: key[name] for name in names})
            work = (timing.measure, config, size, self.steps)
        else:
            work = (time_torch, config, size, self.steps, key["mode"])
        try:
            end, value = bench.in_a_process(*work)
        except ValueError as error:  # attention that the device has not, for example
            end, value = "failed", " ".join(str(error).split())
        run = key | bench.result_of(size, end, value)
        print(f"{' '.join(map(str, key.values())):<32}{bench.row(run)}", flush=True)
        self.found["runs"].append(run)
        workdir.write_text(self.path, json.dumps(self.found, indent=1) + "\n")
        return run


def fastest(runs: Sequence[dict]) -> dict | None:
    """The run with the most images a second."""
    return max(runs, key=lambda run: run["images_per_s"], default=None)


def ours(chosen: argparse.Namespace, runs: Runs, config: ConfigDict) -> dict | None:
    """Our fastest run of a variant."""
    first, *more = chosen.unroll
    found = []
    for attention, remat in itertools.product(chosen.attention, chosen.remat):
        options = {"attention": attention, "remat": remat, "unroll": first}
        found += runs.sweep(config, "ours", chosen.batches, **options)
    best = fastest(found)
    for unroll in more if best else ():
        options = {name: best[name] for name in ("attention", "remat")}
        size = [best["batch_per_device"]]
        found += runs.sweep(config, "ours", size, **options, unroll=unroll)
    return fastest(found)


def main() -> None:
    """Run what is asked and print the fastest of each side, and their ratio."""
    chosen = arguments()
    # Each run has the device to itself; without this JAX takes three quarters of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    runs, lines = Runs(chosen), []
    print(" " * 32 + "".join(f"{name:>14}" for name in bench.COLUMNS))
    for variant in chosen.variants:
        config = settings(chosen, variant)
        best = {"ours": None, "torch": None}
        if "ours" in chosen.sides:
            best["ours"] = ours(chosen, runs, config)
        if "torch" in chosen.sides:
            found = [
                list(runs.sweep(config, "torch", chosen.batches, mode=mode))
                for mode in chosen.modes
            ]
            best["torch"] = fastest(list(itertools.chain(*found)))
        lines += [f"{'fastest':<32}{bench.row(run)}" for run in best.values() if run]
        if all(best.values()):
            rates = [run["images_per_s"] for run in best.values()]
            lines.append(f"{variant} ours/torch, images/s: {rates[0] / rates[1]:.2f}")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
