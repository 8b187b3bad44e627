"""k-NN against the reference's classifier, from raw features to class scores."""

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


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("mean_patch", [0, 1])
def test_the_input_of_the_linear_probe_equals_the_reference(data, blocks, mean_patch):
    layers = [
        (data[f"linear/in/{i}/patch"][:, None], data[f"linear/in/{i}/cls"])
        for i in range(data.meta["nblk"] - blocks, data.meta["nblk"])
    ]
    got = probes.linear_input(layers, bool(mean_patch))
    want = data[f"linear/out/n{blocks}_avg{mean_patch}"]
    np.testing.assert_allclose(got, want, atol=CLOSE)


@pytest.mark.parametrize("kind", linear.kinds((1, 4)), ids=lambda kind: kind.name)
def test_the_columns_of_a_linear_head_equal_the_reference(data, kind):
    layers = [
        (data[f"linear/in/{i}/patch"][:, None], data[f"linear/in/{i}/cls"])
        for i in range(data.meta["nblk"] - 4, data.meta["nblk"])
    ]
    whole = probes.linear_input(layers)
    got = whole[:, kind.columns(layers[0][1].shape[-1], 4)]
    want = data[f"linear/out/n{kind.blocks}_avg{int(kind.mean_patch)}"]
    np.testing.assert_allclose(got, want, atol=CLOSE)
