"""Exact nearest neighbours by blocks of matrix products."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames=("k", "block", "shards"))
def topk(
    queries: jax.Array, keys: jax.Array, k: int, block: int = 4096, shards: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The k keys of largest dot product with each query.

    Args:
        queries: [n D] float.
        keys: [m D] float, m >= k.
        k: neighbours.
        block: keys per matrix product; memory grows with n * block, not n * m.
        shards: parts of the keys that are searched side by side, one a device.
    Returns: ([n k] float32 products, falling; [n k] int32 key numbers).
    Raises: ValueError if there are fewer than k keys.
    """
    number = keys.shape[0]
    if number < k:
        raise ValueError(
            f"{k} neighbours are asked for among {number} keys; ask for fewer."
        )
    block = min(block, -(-number // shards))
    blocks = -(-number // (shards * block))
    padded = jnp.pad(keys, ((0, shards * blocks * block - number), (0, 0)))
    padded = padded.reshape(shards, blocks, block, -1)
    first = jnp.arange(shards * blocks, dtype=jnp.int32).reshape(shards, blocks) * block

    def merge(best, part):
        keys, start = part
        ids = start + jnp.arange(block, dtype=jnp.int32)
        dots = jnp.einsum(
            "nd,md->nm", queries, keys, precision=jax.lax.Precision.HIGHEST
        ).astype(jnp.float32)
        dots = jnp.where(ids < number, dots, -jnp.inf)
        dots = jnp.concatenate([best[0], dots], axis=1)
        ids = jnp.concatenate([best[1], jnp.broadcast_to(ids, (len(queries), block))], 1)
        return _largest(dots, ids, k), None

    nothing = (
        jnp.full((len(queries), k), -jnp.inf, jnp.float32),
        jnp.zeros((len(queries), k), jnp.int32),
    )
    search = jax.vmap(lambda keys, first: jax.lax.scan(merge, nothing, (keys, first))[0])
    dots, ids = (x.swapaxes(0, 1).reshape(len(queries), -1) for x in search(padded, first))
    return _largest(dots, ids, k)


def _largest(dots: jax.Array, ids: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row with their ids."""
    dots, where = jax.lax.top_k(dots, k)
    return dots, jnp.take_along_axis(ids, where, axis=1)
