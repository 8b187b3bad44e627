"""Block masks and their packing into the buffer of masked patches."""

import numpy as np
import pytest

from dinov2_jax.data import batch, masks


def draw(seed=0, rows=12, grid=(16, 16), probability=0.5, ratio=(0.1, 0.5), **kwargs):
    rng = np.random.default_rng(seed)
    kwargs = {"max_patches": grid[0] * grid[1] / 2} | kwargs
    return masks.draw(rng, rows, grid, probability, ratio, **kwargs)


@pytest.mark.parametrize("grid", [(16, 16), (7, 7), (5, 12), (28, 9)])
@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_exactly_the_asked_share_of_rows_is_masked(grid, probability):
    for seed in range(5):
        counts = draw(seed, 11, grid, probability, (0.2, 0.6)).sum((1, 2))
        assert (counts > 0).sum() == int(11 * probability)
        assert counts.max(initial=0) <= 0.6 * grid[0] * grid[1]


def test_masked_patches_never_exceed_the_upper_bound():
    for rows in (1, 2, 7, 32):
        bound = masks.upper_bound(rows, 256, 0.7, (0.1, 0.5))
        assert all(draw(s, rows, probability=0.7).sum() <= bound for s in range(20))


def test_the_same_generator_state_gives_the_same_masks():
    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def test_the_largest_block_is_the_references_chain_of_floors():
    assert [masks.max_block(*x) for x in [(224, 14), (224, 16), (70, 14)]] == [
        128,
        98,
        10,
    ]


@pytest.mark.torch
def test_targets_equal_pytorchs_linspace():
    torch = pytest.importorskip("torch", reason="needs torch and torchvision")
    for count in range(1, 65):
        for low, high in [(0.1, 0.5), (0.05, 0.33), (0.0, 1.0), (0.2, 0.2)]:
            edges = torch.linspace(low, high, count + 1)[1:]
            expected = sum(int(196 * edge) for edge in edges)
            assert masks.upper_bound(count, 196, 1.0, (low, high)) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"probability": 1.5},
        {"probability": -0.1},
        {"ratio": (0.5, 0.1)},
        {"ratio": (-0.1, 0.5)},
        {"ratio": (0.1, 1.5)},
        {"aspect": 0.0},
        {"aspect": 2.0},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        draw(**wrong)


def test_packed_indices_point_at_the_masked_patches_of_each_group():
    groups, views = 3, 2
    drawn = np.stack([draw(seed, 8, (6, 4)).reshape(8, 24) for seed in range(groups)])
    capacity = masks.upper_bound(8, 24, 0.5, (0.1, 0.5))
    packed, indices, weights = batch.pack_masks(drawn, views, capacity)
    assert packed.shape == (12, views, 24)
    assert indices.shape == weights.shape == (groups, capacity)
    assert indices.dtype == np.int32 and weights.dtype == np.float32
    for group in range(groups):
        images = packed[group * 4 : group * 4 + 4]
        real = weights[group] > 0
        assert real.sum() == images.sum()
        assert images.reshape(-1)[indices[group, real]].all()
        assert len(set(indices[group, real])) == real.sum()
        # Each masked crop has weight one in all.
        rows = np.bincount(indices[group, real] // 24, weights[group, real], 8)
        np.testing.assert_allclose(rows, images.any(2).reshape(-1), atol=1e-6)


def test_a_buffer_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="capacity"):
        batch.pack_masks(np.ones((1, 2, 9), bool), 2, 17)


def test_every_patch_is_a_target_without_any_mask():
    packed, indices, weights = batch.every_patch(2, 4, 2, 9)
    assert packed.shape == (4, 2, 9) and not packed.any()
    np.testing.assert_array_equal(indices, [np.arange(36)] * 2)
    np.testing.assert_allclose(weights.sum(1), 4, rtol=1e-6)


def test_normalised_images_pass_through_unchanged():
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    assert batch.normalize(images) is images
