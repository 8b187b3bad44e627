"""Devices as a mesh (replica, fsdp), and rules that lay arrays over it."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax import tree

BATCH = P(("replica", "fsdp"))

RULES = {
    ".*blocks/.*/kernel": P(None, "fsdp"),  # never along the layer axis
    ".*_head/mlp_[0-9]+/kernel": P("fsdp"),
    ".*_head/last_layer/v": P(None, "fsdp"),
    ".*_head/last_layer/g": P("fsdp"),
}
"""Leaf name -> layout; moments and teacher end in the same names. Others are whole."""


def make_mesh(fsdp: int = 1, devices: list | None = None) -> Mesh:
    """All devices as (replica, fsdp).

    Args:
        fsdp: devices that share one copy of the parameters.
        devices: those to use; None for all.
    Raises: ValueError if fsdp does not divide their number.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(
            f"mesh.fsdp={fsdp} does not divide {len(devices)} devices; choose one of "
            f"{[n for n in range(1, len(devices) + 1) if len(devices) % n == 0]}."
        )
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(
        shape, ("replica", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def layouts(shapes: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a state, by its name.

    Args:
        shapes: tree of arrays or ShapeDtypeStructs.
        mesh: of `make_mesh`.
    Returns: tree of NamedShardings; an axis that the mesh does not divide stays whole.
    """

    def one(name: str, leaf: Any) -> NamedSharding:
        hits = [s for pattern, s in RULES.items() if re.fullmatch(pattern, name)]
        spec = hits[0] if hits else P()
        if any(
            axis and leaf.shape[i] % mesh.shape[axis] for i, axis in enumerate(spec)
        ):
            spec = P()
        return NamedSharding(mesh, spec)

    return tree.map_named(one, shapes)


def gather(mesh: Mesh, dtype: Any) -> Callable[[Any], Any] | None:
    """What makes a block's weights whole at the moment of use.

    The forward pass casts to the compute dtype and replicates, the backward pass
    constrains the gradient to the shard, so that it arrives by a reduce-scatter.

    Returns: parameters of one block -> the same, whole; None if nothing is sharded.
    """
    if mesh.shape["fsdp"] == 1:
        return None

    def leaf(name: str, x: jax.Array) -> jax.Array:
        if not name.endswith("/kernel") or x.shape[0] % mesh.shape["fsdp"]:
            return x
        whole, shard = (NamedSharding(mesh, s) for s in (P(), P("fsdp")))

        @jax.custom_vjp
        def replicate(x):
            return jax.lax.with_sharding_constraint(x, whole)

        def backward(_, grad):
            return (jax.lax.with_sharding_constraint(grad, shard),)

        replicate.defvjp(lambda x: (replicate(x), None), backward)
        return replicate(x.astype(dtype))

    return lambda params: tree.map_named(leaf, params)


def put(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch as arrays over all devices."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def whole(x: Any) -> Any:
    """Arrays of all processes as NumPy on every one of them."""
    if jax.process_count() == 1:
        return jax.device_get(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all of them must ask."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.int32(flag)).any())
