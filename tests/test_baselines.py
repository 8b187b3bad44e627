"""Features that need no network: equal to NumPy's, and reduced where the images lie."""

import jax
import numpy as np
import pytest

from dinov2_jax import sharding
from dinov2_jax.evals import metrics

BOTH = [metrics.raw_pixels, metrics.color_histograms]


def test_raw_pixels_are_means_of_cells():
    images = np.random.default_rng(0).integers(0, 256, (2, 13, 9, 3), np.uint8)
    got = metrics.raw_pixels(images, side=2)
    want = np.stack(
        [
            images[:, a : a + 6, b : b + 4].reshape(2, -1, 3).mean(1, dtype=np.float64)
            for a in (0, 6)
            for b in (0, 4)
        ],
        axis=1,
    ).reshape(2, -1)
    # Sums of integers are exact; what is rounded is one division in float32.
    np.testing.assert_allclose(got, want, rtol=2**-23)
    with pytest.raises(ValueError, match="13x9 are smaller than 10x10"):
        metrics.raw_pixels(images, side=10)


@pytest.mark.parametrize("bins", [1, 3, 8, 256])
def test_color_histograms_count_every_pixel_once(bins):
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)
    images[0, 0, 0] = 255
    if bins == 256:
        images = images[:, :1, :1]
    codes = (images.astype(np.int64) * bins // 256) @ [bins**2, bins, 1]
    want = [np.bincount(c.ravel(), minlength=bins**3) for c in codes]
    got = metrics.color_histograms(images, bins)
    assert got.dtype == np.float32 and codes[0, 0, 0] == bins**3 - 1
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("reduced", BOTH)
def test_each_device_reduces_its_own_images(reduced):
    mesh = sharding.make_mesh()
    images = np.random.default_rng(1).integers(0, 256, (16, 24, 24, 3), np.uint8)
    placed = sharding.put(images, mesh)
    text = reduced.lower(placed).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text, collective
    got = reduced(placed)
    assert got.sharding.is_equivalent_to(placed.sharding, got.ndim)
    np.testing.assert_array_equal(got, jax.jit(reduced)(images))
