"""k-NN against the reference's classifier, from raw features to class scores."""

import re

import numpy as np
import pytest

from dinov2_jax import neighbors
from dinov2_jax.evals import knn, linear
from dinov2_jax.models import probes

# Ten times what float32 leaves of these similarities and scores against float64.
CLOSE = 5e-6


@pytest.fixture(scope="module")
def data(arrays):
    """eval_refs.npz."""
    return arrays("eval_refs")


@pytest.fixture(scope="module", params=[1, 8])
def nearest(data, request):
    """(similarities, labels) of the neighbours, found on so many devices."""
    rows = (knn.unit_rows(data[f"knn/{name}_raw"]) for name in ("test", "train"))
    queries, keys = map(np.asarray, rows)
    k = max(data.meta["ks"])
    dots, ids = neighbors.topk(queries, keys, k, block=3, shards=request.param)
    return dots, data["knn/train_labels"][np.asarray(ids)]


def test_rows_are_normalised_as_in_the_reference(data):
    for name in ("train", "test"):
        got = knn.unit_rows(data[f"knn/{name}_raw"])
        np.testing.assert_allclose(got, data[f"knn/{name}_feats"], atol=CLOSE)


def test_the_nearest_similarities_equal_the_reference(data, nearest):
    np.testing.assert_allclose(nearest[0], data["knn/topk_sims"], atol=CLOSE)


def test_the_neighbours_labels_equal_the_reference(data, nearest):
    np.testing.assert_array_equal(nearest[1], data["knn/topk_labels"])


def test_class_scores_of_every_k_equal_the_reference(data, nearest):
    meta = data.meta
    scores = knn.votes(*nearest, meta["nc"], tuple(meta["ks"]), meta["T"])
    assert sorted(scores) == sorted(meta["ks"])
    for k, got in scores.items():
        np.testing.assert_allclose(got, data[f"knn/probs_k{k}"], atol=CLOSE)


@pytest.mark.parametrize(("block", "shards"), [(1024, 1), (2, 8)])
def test_the_accuracy_of_every_k_equals_the_reference(data, block, shards):
    meta = data.meta
    found = knn.top1(
        data["knn/train_raw"],
        data["knn/train_labels"],
        data["knn/test_raw"],
        data["knn/test_labels"],
        meta["ks"],
        meta["T"],
        block=block,
        shards=shards,
    )
    # The reference stores a share as float32.
    want = {int(k): pytest.approx(x, abs=1e-6) for k, x in meta["top1"].items()}
    assert dict(found) == want


def last(data, blocks: int) -> list:
    """(patches, cls) of so many last blocks."""
    return [
        (data[f"linear/in/{i}/patch"][:, None], data[f"linear/in/{i}/cls"])
        for i in range(data.meta["nblk"] - blocks, data.meta["nblk"])
    ]


def linear_cases(data) -> dict[tuple[int, int], np.ndarray]:
    """(blocks, whether with the mean patch) -> input of the linear probe."""
    stored = data.under("linear/out")
    names = {key: re.fullmatch(r"n(\d+)_avg(\d)", key).groups() for key in stored}
    assert names
    return {tuple(map(int, names[key])): want for key, want in stored.items()}


def test_the_input_of_the_linear_probe_equals_the_reference(data):
    for (blocks, mean_patch), want in linear_cases(data).items():
        got = probes.linear_input(last(data, blocks), bool(mean_patch))
        np.testing.assert_allclose(got, want, atol=CLOSE)


def test_the_columns_of_a_linear_head_equal_the_reference(data):
    cases = linear_cases(data)
    numbers = sorted({blocks for blocks, _ in cases})
    layers = last(data, numbers[-1])
    whole = probes.linear_input(layers)
    for kind in linear.kinds(tuple(numbers)):
        got = whole[:, kind.columns(layers[0][1].shape[-1], numbers[-1])]
        want = cases[kind.blocks, int(kind.mean_patch)]
        np.testing.assert_allclose(got, want, atol=CLOSE, err_msg=kind.name)
