"""k-NN here and in faiss, logistic regression here and in scikit-learn, on the CPU.

    python benchmarks/evals.py --out=benchmarks/results/evals.json
    python benchmarks/evals.py --task=logreg --out=benchmarks/results/logreg.json

Both see the same random features. Prints seconds of each in pairs, the median ratio,
and whether both find the same: neighbours of exact search, or losses and predictions.
faiss is in no extra: pip install faiss-cpu.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

import jax
import numpy as np

from dinov2_jax import neighbors
from dinov2_jax.cli import workdir
from dinov2_jax.evals import knn, logreg


def options() -> argparse.Namespace:
    """Sizes of the task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="knn", choices=("knn", "logreg"))
    parser.add_argument("--classes", type=int, default=10, help="of logreg")
    parser.add_argument(
        "--strengths", type=int, default=5, help="of logreg, values of C"
    )
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


def timed(search, *arguments) -> tuple[float, np.ndarray]:
    """Seconds and what was found."""
    began = time.perf_counter()
    found = search(*arguments)
    return time.perf_counter() - began, found


def main() -> None:
    """Time both in turns."""
    given = options()
    result = {
        "task": given.task,
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "cores": os.cpu_count(),
        "train": given.train,
        "val": given.val,
        "width": given.width,
        "repeats": given.repeats,
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
        pairs.append((here, there))
        same.append(float((a == b).mean()))
        print(f"ours {here:.1f} s, faiss {there:.1f} s", flush=True)
    whole, _ = timed(knn.top1, train, labels, val, guesses, (10, given.neighbors))
    return {
        "neighbors": given.neighbors,
        "seconds": pairs,
        "ratio_ours_over_faiss": statistics.median(a / b for a, b in pairs),
        "same_neighbors": min(same),
        "whole_knn_evaluation_s": whole,
    }


def against_sklearn(given: argparse.Namespace) -> dict:
    """The fits of several C, all at once here, one after the other there."""
    from sklearn import linear_model

    x, val = features(given.train, given.width, 0), features(1000, given.width, 1)
    # Classes that a linear map with noise gives, so that there is something to learn.
    rng = np.random.default_rng(2)
    logits = 20 * x @ rng.normal(size=(given.width, given.classes))
    labels = (logits / given.width**0.5 + rng.gumbel(size=logits.shape)).argmax(1)
    cs = 10 ** np.linspace(-2, 2, given.strengths)

    def here(dtype: str) -> logreg.Fit:
        return logreg.fit(x, labels, given.classes, cs, tolerance=1e-6, dtype=dtype)

    def there() -> list:
        wide = x.astype(np.float64)
        return [
            linear_model.LogisticRegression(C=c, tol=1e-6, max_iter=1000).fit(
                wide, labels
            )
            for c in cs
        ]

    result = {"classes": given.classes, "strengths": cs.tolist()}
    for dtype in logreg.DTYPES:
        first, _ = timed(here, dtype)  # with its compilation
        pairs, found = [], None
        for _ in range(given.repeats):
            mine, found = timed(here, dtype)
            others, models = timed(there)
            pairs.append((mine, others))
            print(f"ours {dtype} {mine:.1f} s, scikit-learn {others:.1f} s", flush=True)
        guessed = logreg.guesses(found, val)
        same = [g == m.predict(val) for g, m in zip(guessed, models)]
        result[dtype] = {
            "seconds": pairs,
            "first_call_s": first,
            "ratio_ours_over_sklearn": statistics.median(a / b for a, b in pairs),
            "same_predictions": float(np.mean(same)),
            "iterations": found.iterations.tolist(),
        }
    return result


if __name__ == "__main__":
    main()
