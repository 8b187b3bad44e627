"""Position tables on every grid, against PyTorch as the reference and peers call it."""

import math

import jax.numpy as jnp
import numpy as np
import peers
import pytest

from dinov2_jax.convert import adapt
from dinov2_jax.models import posembed

SIDES = (37, 16, 14, 7)
RELEASED = [(False, 0.1), (True, 0.0)]
WAYS = [*RELEASED, (False, 0.0), (True, 0.1)]
CLOSE = 2e-5  # of entries near 1: float32 coordinates of PyTorch, seen 4e-6


@pytest.mark.parametrize(("antialias", "offset"), WAYS)
def test_every_number_of_positions_up_to_300_is_reached(antialias, offset):
    for side in SIDES:
        for n in range(1, 301):
            weights = posembed.resize_weights(side, n, antialias, offset)
            assert weights.shape == (n, side)
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("pixels", [546, 602, 1092, 1204, 1610, 1722])
def test_models_with_registers_take_sizes_whose_ratio_rounds_down(pixels):
    n = pixels // 14
    # What rounding would make of it is the reason why the size must be given itself.
    assert math.floor(37 * (n / 37)) == n - 1
    assert posembed.resize_weights(37, n, True, 0.0).shape == (n, 37)


def interpolated(table: np.ndarray, grid, antialias: bool, offset: float) -> np.ndarray:
    """What PyTorch makes of a table [rows columns D], called as the reference calls it."""
    torch = peers.package("torch", "torch")
    source = table.shape[:2]
    how = {"size": tuple(grid)}
    if offset:
        how = {"scale_factor": [(n + offset) / m for n, m in zip(grid, source)]}
    found = torch.nn.functional.interpolate(
        torch.from_numpy(table).permute(2, 0, 1)[None],
        mode="bicubic",
        antialias=antialias,
        **how,
    )
    return found[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("antialias", "offset"), WAYS)
@pytest.mark.parametrize("side", SIDES)
def test_values_on_other_grids_are_pytorchs(side, antialias, offset):
    rng = np.random.default_rng(side)
    table = rng.normal(size=(1, 1 + side * side, 3)).astype(np.float32)
    grids = [(39, 43), (78, 86), (115, 123), (1, 300), (300, 2), (side, side + 1)]
    grids += [tuple(rng.integers(1, 120, 2).tolist()) for _ in range(6)]
    for grid in grids:
        got = posembed.resize(jnp.asarray(table), grid, antialias, offset)
        expected = interpolated(
            table[0, 1:].reshape(side, side, 3), grid, antialias, offset
        )
        assert expected.shape[:2] == grid
        np.testing.assert_allclose(
            got[0, 1:], expected.reshape(-1, 3), atol=CLOSE, err_msg=str(grid)
        )


@pytest.mark.parametrize(("antialias", "offset"), RELEASED)
def test_a_table_that_is_not_square_is_resized_by_its_own_rows_and_columns(
    antialias, offset
):
    table = np.random.default_rng(0).normal(size=(1, 1 + 4 * 9, 3)).astype(np.float32)
    same = posembed.resize(jnp.asarray(table), (4, 9), antialias, offset, (4, 9))
    np.testing.assert_array_equal(same, table)
    for grid in ((6, 6), (9, 4), (5, 20)):
        got = posembed.resize(jnp.asarray(table), grid, antialias, offset, (4, 9))
        expected = interpolated(table[0, 1:].reshape(4, 9, 3), grid, antialias, offset)
        np.testing.assert_allclose(got[0, 1:], expected.reshape(-1, 3), atol=CLOSE)
        once = adapt.grid({"pos_embed": table}, grid, antialias, offset, (4, 9))
        np.testing.assert_allclose(once["pos_embed"], got, atol=CLOSE)
    with pytest.raises(
        ValueError, match="37 entries is not a cls entry plus a grid of"
    ):
        posembed.resize(jnp.asarray(table), (5, 5), antialias, offset, (4, 8))
