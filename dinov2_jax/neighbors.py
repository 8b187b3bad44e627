"""Exact nearest neighbours by blocks of matrix products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax import errors


def spread(keys: np.ndarray, shards: int) -> jax.Array:
    """Keys laid once over the first devices, for many calls of `topk`.

    Args:
        keys: [m D]; on several processes, the same on all of them.
        shards: devices, each of which gets as many rows.
    Returns: [m' D], m' the next multiple of `shards`; give `topk` the real m.
    """
    keys = np.asarray(keys)
    padded = np.pad(keys, ((0, -len(keys) % shards), (0, 0)))
    return jax.device_put(padded, NamedSharding(_mesh(shards), P("keys")))


@functools.partial(jax.jit, static_argnames=("k", "block", "shards", "number"))
def topk(
    queries: jax.Array,
    keys: jax.Array,
    k: int,
    block: int = 4096,
    shards: int = 1,
    number: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k keys of largest dot product with each query; of equals, the first ones.

    Args:
        queries: [n D] float.
        keys: [m D] float, or what `spread` made of them.
        k: neighbours.
        block: keys per matrix product; memory grows with n * block, not n * m.
        shards: devices that each search a part of the keys.
        number: m; None for all rows of `keys`.
    Returns: ([n k] float32 products, falling; [n k] int32 key numbers).
    Raises: ValueError if there are fewer than k keys, or fewer devices than shards.
    """
    number = len(keys) if number is None else number
    if not 1 <= k <= number:
        raise errors.InputError(
            f"{k} neighbours are asked for among {number} keys; ask for 1 to {number}."
        )
    keys = jnp.pad(keys, ((0, -len(keys) % shards), (0, 0)))
    first = jnp.arange(shards, dtype=jnp.int32) * (len(keys) // shards)
    search = functools.partial(_search, k=k, block=block, number=number)
    if shards == 1:
        return search(queries, keys, first)
    mesh = _mesh(shards)
    dots, ids = jax.shard_map(
        search,
        mesh=mesh,
        in_specs=(P(), P("keys"), P("keys")),
        out_specs=P(None, "keys"),
        check_vma=False,  # the first winners of a scan are the same everywhere
    )(queries, keys, first)
    whole = NamedSharding(mesh, P())
    return _largest(*jax.lax.with_sharding_constraint((dots, ids), whole), k)


def _search(
    queries: jax.Array, keys: jax.Array, first: jax.Array, k: int, block: int, number
) -> tuple[jax.Array, jax.Array]:
    """The k best of one device's keys, whose numbers start at first[0]."""
    rows = len(keys)
    block = min(block, rows)
    padded = jnp.pad(keys, ((0, -rows % block), (0, 0))).reshape(
        -1, block, keys.shape[1]
    )

    def merge(best, part):
        keys, start = part
        local = start + jnp.arange(block, dtype=jnp.int32)
        ids = first + local
        dots = jnp.einsum(
            "nd,md->nm",
            queries,
            keys,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        dots = jnp.where((local < rows) & (ids < number), dots, -jnp.inf)
        dots = jnp.concatenate([best[0], dots], axis=1)
        ids = jnp.broadcast_to(ids, (len(queries), block))
        return _largest(dots, jnp.concatenate([best[1], ids], axis=1), k), None

    nothing = (
        jnp.full((len(queries), k), -jnp.inf, jnp.float32),
        jnp.zeros((len(queries), k), jnp.int32),
    )
    starts = jnp.arange(len(padded), dtype=jnp.int32) * block
    return jax.lax.scan(merge, nothing, (padded, starts))[0]


def _largest(dots: jax.Array, ids: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row with their ids."""
    dots, where = jax.lax.top_k(dots, k)
    return dots, jnp.take_along_axis(ids, where, axis=1)


def _mesh(shards: int) -> Mesh:
    """The first devices in a row."""
    devices = jax.devices()
    if not 1 <= shards <= len(devices):
        raise errors.InputError(
            f"{shards=} must be 1 to {len(devices)}, the devices there are."
        )
    return jax.make_mesh(
        (shards,), ("keys",), axis_types=(AxisType.Auto,), devices=devices[:shards]
    )
