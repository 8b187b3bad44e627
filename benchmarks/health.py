"""A healthy run of the demo beside two that are made to collapse.

    python benchmarks/health.py --out=docs/pictures

Prints what they measured of themselves, as a table in Markdown, and leaves the curves
as health.png and knn.png. The second run has no centering (loss.targets=none): nothing
keeps its teacher from giving every image the same answer. The third has no KoLeo
either, which keeps the backbone's features apart whatever the head does.
"""

import argparse
import os
import pathlib
import tempfile

from dinov2_jax import __main__ as command
from dinov2_jax.viz import curves, history

ROOT = pathlib.Path(__file__).parents[1]
NO_CENTERING = "--config.loss.targets=none"
RUNS = {
    "healthy": [],
    "no_centering": [NO_CENTERING],
    "nor_koleo": [NO_CENTERING, "--config.loss.koleo_weight=0"],
}
SHOWN = [
    "loss/total",
    "loss/koleo",
    "knn/top1",
    "health/teacher_entropy_dino",
    "health/kl_to_uniform_dino",
    "health/dead_prototypes_dino",
    "health/teacher_entropy_ibot",
    "health/kl_to_uniform_ibot",
    "health/dead_prototypes_ibot",
    "health/agreement",
    "health/feature_std",
    "health/effective_rank",
    "health/effective_rank_patches",
    "grad_norm/backbone",
]


def options() -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/pictures")
    parser.add_argument("--runs", type=pathlib.Path, help="where the runs go, kept")
    return parser.parse_args()


def near(metrics: list[dict], key: str, step: int) -> str:
    """The value of a metric at the last line up to a step that has it."""
    steps, found = history.series(metrics, key)
    found = found[steps <= step]
    return f"{found[-1]:.3g}" if len(found) else ""


def main() -> None:
    """Run all, print the table, leave the pictures."""
    given = options()
    home = given.runs or pathlib.Path(tempfile.mkdtemp(prefix="health-"))
    for name, overrides in RUNS.items():
        config = f"--config={ROOT / 'configs/demo.py'}"
        arguments = ["train", config, f"--workdir={home / name}", *overrides]
        if command.main(arguments):
            raise SystemExit(f"the {name} run failed.")
    runs = {run.name: run.metrics for run in history.read([home / n for n in RUNS])}
    steps = [10, 100]
    heads = [f"{name}, step {step}" for name in runs for step in steps]
    print("| metric | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * len(heads))
    for key in SHOWN:
        row = [near(runs[name], key, step) for name in runs for step in steps]
        print(f"| `{key}` | " + " | ".join(row) + " |")
    given.out.mkdir(parents=True, exist_ok=True)
    figures = curves.curves(runs, dpi=80)
    for name in ("health", "knn"):
        part = given.out / f"{name}.png.part"
        part.write_bytes(figures[name])
        os.replace(part, given.out / f"{name}.png")


if __name__ == "__main__":
    main()
