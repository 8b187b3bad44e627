"""Kill a training run with -9 again and again; is its history that of a whole one?

    python benchmarks/soak.py --kills=30 --out=benchmarks/results/soak.json

A third of the kills come while the process starts, a third while a checkpoint is being
written, a third at a random moment of training. A run that comes to its end before the
last kill is compared, and another is begun.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from PIL import Image

from dinov2_jax.cli import workdir as workdir_files
from dinov2_jax.train import history

ROOT = pathlib.Path(__file__).parents[1]


def command(workdir: pathlib.Path, options: argparse.Namespace) -> list[str]:
    """The training run."""
    return [
        *(sys.executable, "-m", "dinov2_jax", "train", f"--config={options.config}"),
        f"--workdir={workdir}",
        f"--config.checkpoint.every={options.every}",
        "--config.train.log_every=1",
        *options.overrides,
    ]


def steps(workdir: pathlib.Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 if there is none."""
    return max(history.last_step(workdir), 0)


def corrupted(workdir: pathlib.Path) -> list[str]:
    """Files of a workdir that are not whole; the line being written is allowed."""
    found = []
    for path in workdir.glob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            found.append(path.name)
    for path in workdir.glob("pictures/*.png"):
        try:
            with Image.open(path) as picture:
                picture.load()
        except OSError:
            found.append(path.name)
    metrics = workdir / "metrics.jsonl"
    for line in metrics.read_text().splitlines()[:-1] if metrics.is_file() else []:
        try:
            json.loads(line)
        except ValueError:
            found.append(f"metrics.jsonl: {line[:40]}")
    return found


def newest(workdir: pathlib.Path) -> int:
    """Step of the newest whole checkpoint, 0 if there is none."""
    whole = [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()]
    return max(whole, default=0)


def being_saved(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is half-written now."""
    return any(workdir.glob("checkpoints/*orbax-checkpoint-tmp*"))


def killed(given: list[str], workdir: pathlib.Path, log, kind: str, start_s: float):
    """Start the run and kill it at a moment of that kind.

    Returns: the steps it had in its history when killed, None if it ended before.
    """
    process = subprocess.Popen(given, stdout=log, stderr=log)
    begun = steps(workdir)
    if kind == "start":
        wait(process, time.monotonic() + random.uniform(0, start_s), lambda: False)
    else:
        wait(process, None, lambda: steps(workdir) != begun)
        if kind == "save":
            wait(process, None, lambda: being_saved(workdir))
            time.sleep(random.choice([0, 0, 0.01, 0.03, 0.1]))
        else:
            wait(process, time.monotonic() + random.uniform(0, 12), lambda: False)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    return steps(workdir) if code == -signal.SIGKILL else None


def wait(process: subprocess.Popen, until: float | None, there) -> None:
    """Return when the time has come, something is there, or the process has ended."""
    while process.poll() is None and not there():
        if until is not None and time.monotonic() > until:
            return
        time.sleep(0.002)


def options_of(given: list[str] | None = None) -> argparse.Namespace:
    """Options; what is left are overrides of the config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument(
        "--every", type=int, default=5, help="steps between checkpoints"
    )
    parser.add_argument("--config", default=str(ROOT / "configs/demo.py"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    options, options.overrides = parser.parse_known_args(given)
    return options


def main() -> None:
    """Print what the kills did."""
    options = options_of()
    random.seed(options.seed)
    home = pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(home / "cache")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    log = (home / "log.txt").open("w")
    straight, began = home / "straight", time.monotonic()
    process = subprocess.Popen(command(straight, options), stdout=log, stderr=log)
    wait(process, None, lambda: steps(straight) > 0)
    start_s = time.monotonic() - began
    if process.wait():
        raise SystemExit(f"the run itself failed; see {home / 'log.txt'}.")
    want, same = history.reproducible(straight), []
    kills, lost, runs, bad = [], [], 1, []
    kinds = ["start", "save", "train"]
    while len(kills) < options.kills:
        workdir, kind = home / f"run{runs}", kinds[len(kills) % 3]
        at = killed(command(workdir, options), workdir, log, kind, start_s)
        if at is None:
            same.append(history.reproducible(workdir) == want)
            runs += 1
            continue
        kills.append(kind)
        lost.append(at - newest(workdir))
        bad += corrupted(workdir)
        print(
            f"kill {len(kills)}/{options.kills}: {kind}, at step {at}, "
            f"{lost[-1]} steps lost",
            flush=True,
        )
    workdir = home / f"run{runs}"
    subprocess.run(command(workdir, options), stdout=log, stderr=log, check=True)
    same.append(history.reproducible(workdir) == want)
    log.close()
    said = (home / "log.txt").read_text()
    result = {
        "config": pathlib.Path(options.config).name,
        "overrides": options.overrides,
        "checkpoint_every": options.every,
        "kills": len(kills),
        "of_each_kind": {kind: kills.count(kind) for kind in kinds},
        "runs": runs,
        "lost_steps_most": max(lost, default=0),
        "lost_steps": lost,
        "corrupted_files": len(bad),
        "unreadable_checkpoints": said.count("cannot be read"),
        "histories_identical": all(same),
        "lines_compared": len(want) * len(same),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        workdir_files.write_text(options.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
