"""k-NN here and in faiss, logistic regression here and in scikit-learn, on the CPU.

    python benchmarks/evals.py --out=benchmarks/results/evals.json
    OPENBLAS_NUM_THREADS=1 python benchmarks/evals.py --task=logreg --train=419 \\
        --val=1000 --repeats=2 --out=benchmarks/results/logreg.json

Both see the same random features. Prints seconds of each in pairs, the median ratio,
and whether both find the same: neighbours of exact search, or objectives, the chosen C
and its accuracy of the whole sweep. Seconds count the compilation, those of a process
count all its threads; one thread of BLAS is what suits scikit-learn at these sizes.
faiss is in no extra: pip install faiss-cpu.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import time
import warnings
from typing import Any

import jax
import numpy as np

from dinov2_jax import neighbors
from dinov2_jax.cli import workdir
from dinov2_jax.evals import knn, logreg


def options() -> argparse.Namespace:
    """Sizes of the task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="knn", choices=("knn", "logreg"))
    parser.add_argument("--classes", type=int, default=17, help="of logreg")
    parser.add_argument(
        "--strengths", type=int, default=45, help="of logreg, values of C"
    )
    parser.add_argument("--dtype", default="float64", choices=logreg.DTYPES)
    parser.add_argument("--train", type=int, default=50_000, help="rows")
    parser.add_argument("--val", type=int, default=50_000, help="rows")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--neighbors", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="pairs")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def features(rows: int, width: int, seed: int) -> np.ndarray:
    """[rows width] float32, of unit length."""
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ours(train: np.ndarray, val: np.ndarray, k: int, block: int = 1024) -> np.ndarray:
    """[n k] neighbours, by the blocks that the evaluation uses."""
    keys = neighbors.spread(train, 1)
    found = [
        neighbors.topk(val[i : i + block], keys, k)[1]
        for i in range(0, len(val), block)
    ]
    return np.concatenate([np.asarray(x) for x in found])


def theirs(train: np.ndarray, val: np.ndarray, k: int) -> np.ndarray:
    """[n k] neighbours by faiss."""
    import faiss

    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train)
    return index.search(val, k)[1]


def timed(search, *arguments) -> tuple[dict, Any]:
    """Seconds by the clock and of this process on all cores, and what was found."""
    began, used = time.perf_counter(), time.process_time()
    found = search(*arguments)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    return {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}, found


def main() -> None:
    """Time both in turns."""
    given = options()
    result = {
        "task": given.task,
        "command": shlex.join(["python", "benchmarks/evals.py", *sys.argv[1:]]),
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "cores": os.cpu_count(),
        "train": given.train,
        "val": given.val,
        "width": given.width,
        "repeats": given.repeats,
        "load_average": os.getloadavg(),
    } | (against_faiss(given) if given.task == "knn" else against_sklearn(given))
    print(json.dumps(result, indent=2))
    if given.out:
        workdir.write_text(given.out, json.dumps(result, indent=2) + "\n")


def against_faiss(given: argparse.Namespace) -> dict:
    """Exact k-NN in pairs, and the whole evaluation once."""
    train = features(given.train, given.width, 0)
    val = features(given.val, given.width, 1)
    labels = np.random.default_rng(2).integers(0, 1000, given.train)
    guesses = np.random.default_rng(3).integers(0, 1000, given.val)
    ours(train[:5000], val[:2048], given.neighbors)  # compile
    pairs, same = [], []
    for _ in range(given.repeats):
        here, a = timed(ours, train, val, given.neighbors)
        there, b = timed(theirs, train, val, given.neighbors)
        pairs.append((here["wall_s"], there["wall_s"]))
        same.append(float((a == b).mean()))
        print(f"ours {here}, faiss {there}", flush=True)
    whole, _ = timed(knn.top1, train, labels, val, guesses, (10, given.neighbors))
    return {
        "neighbors": given.neighbors,
        "seconds": pairs,
        "ratio_ours_over_faiss": statistics.median(a / b for a, b in pairs),
        "same_neighbors": min(same),
        "whole_knn_evaluation_s": whole["wall_s"],
    }


def clustered(rows: int, width: int, classes: int, seed: int) -> tuple:
    """[rows width] float32 of unit length about a mean for each class, and labels [rows].

    Deviations fall as those of principal components do, by 1 / number, along directions
    of no axis; classes overlap, so that there is a C to choose.
    """
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    falling = 1 / np.arange(1, width + 1)
    turn = np.linalg.qr(shared.normal(size=(width, width)))[0]
    means, middle = shared.normal(size=(classes, width)), shared.normal(size=width)
    labels = own.integers(0, classes, rows)
    x = own.normal(size=(rows, width)) + 0.7 * means[labels] + middle
    x = (x * falling) @ turn
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def against_sklearn(given: argparse.Namespace) -> dict:
    """The whole protocol: all C on nine tenths, the best on one tenth, all rows again."""
    from sklearn import linear_model

    cs = 10 ** np.linspace(-6, 5, given.strengths)
    settings = {"tolerance": 1e-12, "iterations": 1000}
    rng = given.width, given.classes
    x, labels = clustered(given.train, *rng, 1)
    val, truth = clustered(given.val, *rng, 2)
    weights, out = logreg.held_out_rows(len(x), 0.1, 0)
    rest = weights > 0

    def here() -> dict:
        passed = []
        found = logreg.sweep(
            x,
            labels,
            given.classes,
            cs,
            dtype=given.dtype,
            after=passed.append,
            **settings,
        )
        losses = [float(p.last.loss) for p in passed]
        accuracy = float((logreg.guesses(found.fit, val)[0] == truth).mean())
        return {
            "c": found.c,
            "held_out_accuracy": float(found.accuracies.max()),
            "accuracy": accuracy,
            "objectives": [*losses, float(found.fit.loss[0])],
            "iterations": int(sum(p.last.iterations for p in passed)),
        }

    def there() -> dict:
        wide, others = x.astype(np.float64), val.astype(np.float64)

        def fit(c: float, rows):
            model = linear_model.LogisticRegression(C=c, tol=1e-12, max_iter=1000)
            return model.fit(wide[rows], labels[rows])

        models = [fit(c, rest) for c in cs]
        shares = [m.score(wide[out], labels[out]) for m in models]
        best = float(cs[int(np.argmax(shares))])
        last, whole = fit(best, slice(None)), slice(None)
        found = [*((c, rest, m) for c, m in zip(cs, models)), (best, whole, last)]
        return {
            "c": best,
            "held_out_accuracy": float(max(shares)),
            "accuracy": float(last.score(others, truth)),
            "objectives": [objective(m, wide[r], labels[r], c) for c, r, m in found],
            "iterations": int(sum(m.n_iter_.max() for m in models)),
        }

    pairs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs reaches its 1,000 steps
        for _ in range(given.repeats):
            pairs.append([timed(here), timed(there)])
            (a, mine), (b, others) = pairs[-1]
            print(f"here {a}, scikit-learn {b}", flush=True)
    excess = (np.array(mine["objectives"]) / others["objectives"] - 1).tolist()
    return {
        "classes": given.classes,
        "strengths": given.strengths,
        "dtype": given.dtype,
        "here": [seconds for (seconds, _), _ in pairs],
        "scikit_learn": [seconds for _, (seconds, _) in pairs],
        "ratio_wall": statistics.median(
            a["wall_s"] / b["wall_s"] for (a, _), (b, _) in pairs
        ),
        "ratio_cpu": statistics.median(
            a["cpu_s"] / b["cpu_s"] for (a, _), (b, _) in pairs
        ),
        "found_here": mine,
        "found_by_scikit_learn": others,
        "largest_objective_above_scikit_learn": max(excess),
        "largest_objective_below_scikit_learn": min(excess),
    }


def objective(model, x: np.ndarray, labels: np.ndarray, c: float) -> float:
    """That of a scikit-learn model, divided by C and by the number of rows."""
    logits = model.decision_function(x)
    logits -= logits.max(1, keepdims=True)
    right = logits[np.arange(len(x)), labels] - np.log(np.exp(logits).sum(1))
    return float(0.5 * (model.coef_**2).sum() / (c * len(x)) - right.mean())


if __name__ == "__main__":
    main()
