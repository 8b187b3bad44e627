"""k-NN, figures about features, baselines, and features taken over the devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import features, sharding
from dinov2_jax.evals import knn, metrics


def clusters(number: int, seed: int):
    """[number 8] rows near four far directions, and which of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, number)
    x = 4 * np.eye(8)[labels] + rng.normal(size=(number, 8)) / 4
    return x.astype(np.float32), labels


def test_votes_equal_a_loop_over_neighbours():
    rng = np.random.default_rng(0)
    dots = -np.sort(-rng.uniform(-1, 1, (5, 6)))
    labels = rng.integers(0, 3, (5, 6))
    weights = np.exp(dots / 0.1)
    weights /= weights.sum(1, keepdims=True)
    for k, got in knn.votes(dots, labels, 3, (2, 6), temp=0.1).items():
        want = np.zeros((5, 3))
        for row in range(5):
            for place in range(k):
                want[row, labels[row, place]] += weights[row, place]
        np.testing.assert_allclose(got, want, atol=1e-6)  # float32 softmax
        assert (np.asarray(got).sum(1) <= 1 + 1e-6).all()


def test_separate_clusters_are_recognised_at_any_scale():
    (train, own), (val, wanted) = clusters(90, 0), clusters(31, 1)
    assert knn.top1(train, own, val, wanted, (1, 7)) == {1: 1.0, 7: 1.0}
    scaled = knn.top1(1e-6 * train, own, 1e6 * val, wanted, (1, 7))
    assert scaled == {1: 1.0, 7: 1.0}


def test_accuracy_is_counted_over_unequal_blocks_and_devices():
    train, own = clusters(50, 0)
    rng = np.random.default_rng(3)
    val, wanted = rng.normal(size=(37, 8)).astype(np.float32), rng.integers(0, 4, 37)
    whole = knn.top1(train, own, val, wanted, (1, 5))
    assert 0 < whole[1] < 1
    for block, shards in ((10, 1), (36, 8)):
        assert knn.top1(train, own, val, wanted, (1, 5), 0.07, block, shards) == whole


def test_more_neighbours_than_rows_are_all_rows():
    (train, own), (val, wanted) = clusters(6, 0), clusters(9, 1)
    found = knn.top1(train, own, val, wanted, (6, 200))
    assert found[6] == found[200]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": np.zeros((0, 8)), "own": np.zeros(0, int)}, "train: 0 features"),
        ({"val": np.zeros((0, 8)), "wanted": np.zeros(0, int)}, "val: 0 features"),
        ({"own": np.zeros(3, int)}, "train: 9 features with 3 labels"),
        ({"wanted": np.full(4, -1)}, "val: 4 of 4 images have no label"),
        ({"ks": (5, 0)}, "at least 1"),
        ({"ks": ()}, "one k or more"),
    ],
)
def test_what_k_nn_cannot_use_is_refused(change, message):
    (train, own), (val, wanted) = clusters(9, 0), clusters(4, 1)
    given = {"train": train, "own": own, "val": val, "wanted": wanted, "ks": (1,)}
    with pytest.raises(ValueError, match=message):
        knn.top1(*(given | change).values())


def test_a_zero_row_stays_zero_and_others_get_length_one():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [1e-9, 0.0], [-1e9, 0.0]], np.float32)
    want = [[0.6, 0.8], [0, 0], [1, 0], [-1, 0]]
    np.testing.assert_allclose(knn.unit_rows(x), want, atol=1e-6)  # float32 rsqrt
    assert knn.unit_rows(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_the_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    signs = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 1.0, -1.0)
    assert metrics.effective_rank(signs) == pytest.approx(8)  # orthogonal columns
    assert metrics.effective_rank(signs + 1e4) == pytest.approx(8)  # centred
    line = rng.normal(size=(50, 1)) * rng.normal(size=(1, 8))
    assert metrics.effective_rank(line) == pytest.approx(1)
    few = rng.normal(size=(5, 64))
    assert 3 < metrics.effective_rank(few) <= 4  # five rows span four directions
    half = signs * np.repeat([1.0, 0.0], 4)
    assert metrics.effective_rank(half) == pytest.approx(4)


def test_collapsed_features_have_no_rank_whatever_rounding_adds():
    rng = np.random.default_rng(0)
    same = np.repeat(rng.normal(size=(1, 32)), 40, axis=0)
    assert metrics.effective_rank(same) == 0
    noisy = same * (1 + 1e-6 * rng.normal(size=same.shape))
    assert metrics.effective_rank(noisy.astype(np.float32)) == 0
    assert metrics.effective_rank(np.zeros((3, 4), np.float32)) == 0
    assert metrics.effective_rank(same[:1]) == 0


def test_figures_of_features_that_are_not_finite_are_not_numbers():
    x = np.ones((4, 3), np.float32)
    x[1, 1] = np.inf
    assert np.isnan(metrics.effective_rank(x))
    with np.errstate(invalid="ignore"):
        assert np.isnan(metrics.unit_std(x))


def test_figures_take_bfloat16():
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(jnp.bfloat16)
    assert 6 < metrics.effective_rank(x) <= 8
    assert 0.8 < metrics.unit_std(x) < 1.1


def test_the_spread_of_unit_rows_is_one_on_the_sphere_and_zero_when_equal():
    x = np.random.default_rng(0).normal(size=(4000, 16))
    assert metrics.unit_std(x) == pytest.approx(1, abs=0.01)  # 1 / sqrt(4000)
    assert metrics.unit_std(x) == pytest.approx(metrics.unit_std(100 * x))
    assert metrics.unit_std(np.ones((5, 3))) == 0
    assert metrics.unit_std(np.zeros((5, 3))) == 0


def part(ids, side=4):
    """A batch whose images hold their record number."""
    ids = np.asarray(ids)
    images = np.broadcast_to(ids[:, None, None, None], (len(ids), side, side, 3))
    return types.SimpleNamespace(
        images=np.where(images < 0, 0, images).astype(np.uint8),
        labels=np.where(ids < 0, -1, ids % 5).astype(np.int32),
        ids=ids.astype(np.int64),
    )


@pytest.mark.parametrize("fsdp", [1, 4])
def test_features_come_in_order_without_padding_and_skipped_images(fsdp):
    mesh = sharding.make_mesh(fsdp)

    @jax.jit
    def forward(images):
        x = images.astype(jnp.float32)
        return {"mean": x.mean((1, 2, 3)), "corner": x[:, 0, 0]}

    batches = [part([10, 11, -1, 13, 14, 15, 16, 17]), part([18, 19] + 6 * [-1])]
    found, labels, ids = features.extract(forward, batches, mesh)
    want = [10, 11, 13, 14, 15, 16, 17, 18, 19]
    np.testing.assert_array_equal(ids, want)
    np.testing.assert_array_equal(labels, np.array(want) % 5)
    np.testing.assert_array_equal(found["mean"], want)
    np.testing.assert_array_equal(found["corner"], np.repeat([want], 3, 0).T)
    assert isinstance(found["mean"], np.ndarray)


def test_features_of_nothing_are_refused():
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match="no batch"):
        features.extract(lambda x: x, [], mesh)
    with pytest.raises(ValueError, match="No image of the set could be decoded"):
        features.extract(lambda x: x, [part(8 * [-1])], mesh)
    with pytest.raises(ValueError, match="12 images does not divide over 8 devices"):
        features.extract(lambda x: x, [part(range(12))], mesh)
