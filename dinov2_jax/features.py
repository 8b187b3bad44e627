"""Features of a data set: a sharded forward pass over its batches."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import errors, sharding


def stream(
    apply: Callable[[jax.Array], Any], batches: Iterable[Any], mesh: Mesh
) -> Iterator[tuple[Any, Any]]:
    """Batches with their features, in order; the devices are one batch ahead.

    Args:
        apply: jitted, [b H W 3] images -> tree of [b ...] arrays.
        batches: each with images.
        mesh: devices of this process alone.
    Returns: an iterator of (batch, tree of NumPy arrays).
    """
    before = None
    for batch in batches:
        made = apply(sharding.put(batch.images, mesh))
        if before is not None:
            yield before[0], jax.device_get(before[1])
        before = batch, made
    if before is not None:
        yield before[0], jax.device_get(before[1])


def extract(
    apply: Callable[[jax.Array], Any], batches: Iterable[Any], mesh: Mesh
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Features, labels and record numbers of all images that could be decoded.

    Args:
        apply: jitted, [b H W 3] images over all devices -> tree of [b ...] arrays.
        batches: this process's parts, each with images, labels and ids; padding and
            images that cannot be decoded have id -1.
        mesh: the devices.
    Returns: (tree of [n ...] NumPy arrays, [n] int labels, [n] int record numbers).
    Raises: ValueError if no image was left, or a batch does not divide over the mesh.
    """
    found = []
    for part in batches:
        rows = len(part.images) * jax.process_count()
        if rows % mesh.size:
            raise errors.InputError(
                f"A batch of {rows} images does not divide over {mesh.size} devices; "
                "choose a multiple of their number."
            )
        placed = sharding.put((part.images, part.labels, part.ids), mesh)
        found.append(sharding.whole((apply(placed[0]), placed[1], placed[2])))
    if not found:
        raise errors.InputError(
            "There is no batch to take features from; give a larger set."
        )
    features, labels, ids = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    kept = ids >= 0
    if not kept.any():
        raise errors.InputError(
            "No image of the set could be decoded; check its files."
        )
    return jax.tree.map(lambda x: x[kept], features), labels[kept], ids[kept]
