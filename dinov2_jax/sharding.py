"""Devices as a mesh (replica, fsdp), and rules that lay arrays over it."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax import errors, tree

BATCH = P(("replica", "fsdp"))

AXES = {
    ".*(blocks/.*|_head/mlp_[0-9]+)/kernel": -2,
    ".*_head/last_layer/[vg]": -1,
}
"""Leaf name -> the axis that is sharded, from the end; never the layer axis.

Where its shards would not be whole tiles, a matrix is sharded along its other axis.
Moments and teacher end in the same names. Other leaves are whole on every device.
"""

SMALL = 2 << 30
"""Bytes of a state that a device holds whole, where the mesh may be chosen."""

WIDEST = 16
"""Devices of a ring, at most: beyond it shards are too thin to be gathered fast."""

TILE = {-2: 16, -1: 128}
"""Rows and columns of a bfloat16 tile on a TPU; a shard holds whole ones."""


def ring(shapes: Any, devices: Sequence[Any]) -> int:
    """How many devices should share one copy of the parameters.

    Args:
        shapes: the student's parameters or their shapes.
        devices: of the run, present or only compiled for.
    Returns: 1 where the state is small; else the widest ring, up to `WIDEST`, that
        lies along whole axes of a TPU slice or inside a host of GPUs, cuts weights
        into whole tiles, and is not all of a slice of several axes (over such a one
        the TPU compiler turns reduce-scatters into all-reduces).
    """
    if 16 * tree.count(shapes) <= SMALL:  # student, teacher, two moments in float32
        return 1
    weights = [
        (leaf.shape, axis)
        for name, leaf in zip(tree.names(shapes), jax.tree.leaves(shapes))
        if (axis := _axis(name)) is not None
    ]
    widths = [n for n in _widths(devices) if 1 < n <= WIDEST and not len(devices) % n]
    whole = [
        n for n in widths if all(_cuts(shape, axis, n, TILE) for shape, axis in weights)
    ]
    return max(whole, default=min(widths, default=1))


def _widths(devices: Sequence[Any]) -> set[int]:
    """Sizes of rings that are quick on these devices."""
    near = _near(devices)
    if not hasattr(near[0], "coords"):  # a host of GPUs, or the CPU
        return {n for n in range(1, len(near) + 1) if len(near) % n == 0}
    sides = [len({d.coords[i] for d in near}) for i in range(len(near[0].coords))]
    sides = [side for side in sides if side > 1]
    found = {
        math.prod(part)
        for count in range(len(sides) + 1)
        for part in itertools.combinations(sides, count)
    }
    return found if len(sides) < 2 or len(near) <= 4 else found - {len(near)}


def _near(devices: Sequence[Any]) -> list[Any]:
    """The devices of the first one's slice, or of its host of GPUs."""
    first = devices[0]
    near = [d for d in devices if _slice(d) == _slice(first)]
    own = [d for d in near if d.process_index == first.process_index]
    # One process may hold all GPUs of a host, or each its own.
    return own if first.platform in ("gpu", "cuda") and len(own) > 1 else near


def _slice(device: Any) -> int:
    """The slice of a TPU, the host of a GPU; 0 where there is one."""
    return getattr(device, "slice_index", None) or 0


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices as (replica, fsdp), neighbours in the order of their network.

    Args:
        fsdp: devices that share one copy of the parameters.
        devices: those to use, present or only compiled for; None for all.
    Raises: ValueError if fsdp does not divide their number.
    """
    devices = jax.devices() if devices is None else devices
    total, slices = len(devices), len({_slice(d) for d in devices})
    if fsdp < 1 or total % fsdp:
        raise errors.InputError(
            f"mesh.fsdp={fsdp} does not divide {total} devices; choose one of "
            f"{[n for n in range(1, total + 1) if total % n == 0]}, or 0."
        )
    names, types = ("replica", "fsdp"), (AxisType.Auto,) * 2
    if slices == 1:
        shape = (total // fsdp, fsdp)
        return jax.make_mesh(shape, names, axis_types=types, devices=devices)
    inside = math.gcd(fsdp, total // slices)
    across = (slices * inside // fsdp, fsdp // inside)
    found = mesh_utils.create_hybrid_device_mesh(
        (total // slices // inside, inside), across, devices
    )
    return Mesh(found, names, axis_types=types)


def _axis(name: str) -> int | None:
    """The axis, from the end, along which a leaf of that name is best sharded."""
    hits = [axis for pattern, axis in AXES.items() if re.fullmatch(pattern, name)]
    return hits[0] if hits else None


def _cuts(shape: Sequence[int], axis: int, n: int, tile: dict[int, int]) -> list[int]:
    """Of an axis and the other one of a matrix, those that n shards divide in tiles."""
    axes = [axis, -3 - axis][: len(shape)]
    return [a for a in axes if shape[a] % (n * tile[a]) == 0]


def _spec(shape: Sequence[int], axis: int | None, mesh: Mesh) -> P:
    """The layout of an array: into whole tiles, else evenly, else not at all."""
    if axis is None:
        return P()
    n = mesh.shape["fsdp"]
    cuts = _cuts(shape, axis, n, TILE) + _cuts(shape, axis, n, {-2: 1, -1: 1})
    return P(*[None] * (len(shape) + cuts[0]), "fsdp") if cuts else P()


def layouts(shapes: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a state, by its name.

    Args:
        shapes: tree of arrays or ShapeDtypeStructs.
        mesh: of `make_mesh`.
    Returns: tree of NamedShardings.
    """

    def one(name: str, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec(leaf.shape, _axis(name), mesh))

    return tree.map_named(one, shapes)


def gather(mesh: Mesh, dtype: Any, reduce: Any) -> Callable:
    """What makes a sharded weight whole at the moment of use.

    The forward pass casts to the compute dtype and replicates; the backward pass
    constrains the gradient to the shard, so that it arrives by a reduce-scatter.

    Args:
        mesh: of `make_mesh`.
        dtype: of the computation, in which weights travel.
        reduce: dtype in which their gradients are summed over devices.
    Returns: (weight, its axis in `AXES` or None) -> the weight, whole, its values
        those of `dtype` and its type `reduce`.
    """

    def gathered(x: jax.Array, axis: int | None) -> jax.Array:
        shard = NamedSharding(mesh, _spec(x.shape, axis, mesh))
        if shard.is_fully_replicated:
            return x.astype(dtype).astype(reduce)

        @jax.custom_vjp
        def replicate(x):
            # Constrained before, too, so that what travels is already narrow.
            x = jax.lax.with_sharding_constraint(x.astype(dtype), shard)
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))
            return x.astype(reduce)

        def backward(_, grad):
            grad = jax.lax.with_sharding_constraint(grad, shard)
            return (grad.astype(x.dtype),)

        replicate.defvjp(lambda x: (replicate(x), None), backward)
        return replicate(x)

    return gathered


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
    return bool(of_all(flag).any())


def of_all(number: int) -> np.ndarray:
    """[processes] an int32 of every process, on each; all of them must ask."""
    if jax.process_count() == 1:
        return np.array([number], np.int32)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.int32(number)))


def of_first(numbers: Sequence[int]) -> list[int]:
    """The int32s of process 0, on every process; all of them must ask."""
    if jax.process_count() == 1:
        return list(numbers)
    from jax.experimental import multihost_utils

    length = int(of_all(len(numbers))[0])
    own = (list(numbers) + [0] * length)[:length]
    sent = multihost_utils.broadcast_one_to_all(np.array(own, np.int32))
    return np.asarray(sent).tolist()


def total(counts: Sequence[int]) -> list[int]:
    """Sums of int32s over all processes, on each of them; all of them must ask."""
    return [int(of_all(count).sum()) for count in counts]
