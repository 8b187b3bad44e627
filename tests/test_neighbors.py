"""Exact nearest neighbours, against a full sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import neighbors


def rows(number: int, seed: int = 0, width: int = 12) -> np.ndarray:
    """[number width] normal numbers."""
    return np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)


def sorted_wholly(queries, keys, k):
    """The k largest products of each query in float64, and their numbers."""
    dots = queries.astype(np.float64) @ keys.astype(np.float64).T
    ids = np.argsort(-dots, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(dots, ids, 1), ids


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize(("number", "block"), [(203, 16), (203, 4096), (8, 3), (5, 1)])
def test_neighbours_are_those_of_a_full_sort(number, block, shards):
    queries, keys = rows(7), rows(number, 1)
    k = min(number, 5)
    dots, ids = neighbors.topk(queries, keys, k, block=block, shards=shards)
    want, numbers = sorted_wholly(queries, keys, k)
    assert dots.dtype == jnp.float32 and ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, numbers)
    # A float32 sum of 12 products of size 1.
    np.testing.assert_allclose(dots, want, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 8])
def test_of_equal_keys_the_first_ones_are_taken(shards):
    keys = np.repeat(rows(3), [30, 1, 30], axis=0)
    _, ids = neighbors.topk(keys[:1], keys, 9, block=4, shards=shards)
    np.testing.assert_array_equal(ids[0], np.arange(9))


def test_all_keys_may_be_asked_for_though_all_products_are_negative():
    keys = np.abs(rows(21))
    dots, ids = neighbors.topk(-keys[:2], keys, 21, block=4, shards=8)
    assert np.isfinite(dots).all() and (np.asarray(dots) < 0).all()
    np.testing.assert_array_equal(np.sort(ids, axis=1), np.tile(np.arange(21), (2, 1)))


def test_products_of_bfloat16_are_not_rounded_to_bfloat16():
    x = jnp.asarray(rows(40), jnp.bfloat16)
    dots, _ = neighbors.topk(x, x, 3)
    want, _ = sorted_wholly(np.asarray(x), np.asarray(x), 3)
    # bfloat16 itself would be off by up to 0.4 %.
    np.testing.assert_allclose(dots, want, rtol=1e-6)


def test_keys_spread_once_serve_many_calls_and_never_travel():
    keys, queries = rows(803), rows(6, 1)
    spread = neighbors.spread(keys, 8)
    assert len(spread) == 808 and len(spread.sharding.device_set) == 8
    assert {s.data.shape[0] for s in spread.addressable_shards} == {101}
    search = neighbors.topk.lower(queries, spread, 4, block=25, shards=8, number=803)
    compiled = search.compile()
    _, ids = compiled(queries, spread)
    np.testing.assert_array_equal(ids, sorted_wholly(queries, keys, 4)[1])
    # What the devices exchange are their winners, 8 times 4 a query.
    moved = [line for line in compiled.as_text().splitlines() if " all-gather(" in line]
    assert len(moved) == 2 and all("[6,32]" in line for line in moved)
    assert "all-reduce(" not in compiled.as_text()


@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_number_of_neighbours_that_there_are_not_is_refused(k):
    with pytest.raises(ValueError, match=f"{k} neighbours .* among 5 keys; .* 1 to 5"):
        neighbors.topk(rows(2), rows(5), k)


def test_more_shards_than_devices_are_refused():
    with pytest.raises(ValueError, match=r"shards=9 must be 1 to 8"):
        neighbors.topk(rows(2), rows(5), 1, shards=9)
    assert len(jax.devices()) == 8
