"""A released backbone for another image size, patch size or number of channels.

All take and return an official state dict, compute in float64 and round once.
"""

import math
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.models import posembed, probes

State = Mapping[str, np.ndarray]
Size = int | tuple[int, int]
"""A side, or rows and columns."""

PROJECTION = "patch_embed.proj.weight"


def pair(size: Size) -> tuple[int, int]:
    """Rows and columns of a size."""
    return (size, size) if isinstance(size, int) else tuple(size)


def single(rows: int, columns: int) -> Size:
    """The side if both are the same."""
    return rows if rows == columns else (rows, columns)


def sized(
    state: State,
    told: Mapping,
    about: Mapping,
    image_size: Size | None,
    patch_size: int | None,
    in_channels: int | None,
) -> tuple[dict, dict, list[str]]:
    """A state dict in other sizes, the arguments of `ViT` with them, and what changed.

    Args:
        state: official names.
        told: arguments of `ViT` that it has, with `grid`.
        about: arguments of the model that it is for.
        image_size, patch_size, in_channels: pixels, pixels and a number that are asked
            for; None keeps those of `about`, and the grid of the state dict.
    Raises: ValueError if a size is below 1, or the image not of whole patches.
    """
    asked = {"patch_size": patch_size, "in_channels": in_channels}
    asked = {key: size for key, size in asked.items() if size is not None}
    for key, size in asked.items():
        if size < 1:
            raise errors.InputError(f"{key}={size}; give 1 or more.")
    old, size = told["grid"], about["patch_size"] if patch_size is None else patch_size
    new = old
    if image_size is not None:
        new = single(*(n // size for n in pair(image_size)))
        if min(pair(new)) < 1 or pair(image_size) != tuple(n * size for n in pair(new)):
            less = max(min(pair(image_size)) // size, 1) * size
            raise errors.InputError(
                f"image_size={image_size} is no multiple of the patch size {size}; give "
                f"{less} or {less + size}."
            )
    changes = []
    if patch_size not in (None, told["patch_size"]):
        state = patch(state, patch_size)
        changes.append(f"patches {told['patch_size']} -> {patch_size}")
    if in_channels not in (None, told["in_channels"]):
        state = channels(state, in_channels)
        changes.append(f"channels {told['in_channels']} -> {in_channels}")
    if new != old:
        state = grid(state, new, about["antialias"], about["offset"], old)
        changes.append(f"position grid {old} -> {new}")
    pixels = single(*(n * size for n in pair(new)))
    return dict(state), {**about, **asked, "image_size": pixels, "grid": new}, changes


def grid(
    state: State, size: Size, antialias: bool, offset: float, source: Size | None = None
) -> dict:
    """The state dict with its position table on another grid.

    Args:
        state: official names.
        size: patches wanted, a side or (rows, columns), >= 1.
        antialias, offset: of the model, see `posembed.resize_weights`. The model would
            resize at every call as it is done here once.
        source: patches of the table; None for a square one.
    """
    table = np.asarray(state["pos_embed"])
    old = pair(math.isqrt(table.shape[1] - 1) if source is None else source)
    new = pair(size)
    if new == old:
        return dict(state)
    rows, columns = (
        posembed.resize_weights(m, n, antialias, offset) for m, n in zip(old, new)
    )
    given = table[0, 1:].astype(np.float64).reshape(*old, -1)
    resized = np.einsum("hm,wn,mnd->hwd", rows, columns, given, optimize=True)
    resized = resized.reshape(1, math.prod(new), -1).astype(table.dtype)
    return dict(state) | {"pos_embed": np.concatenate([table[:, :1], resized], axis=1)}


def patch(state: State, size: int) -> dict:
    """The state dict with its patch projection for patches of another size.

    With x a patch of p*p pixels and B the matrix that resizes it to `size`, the new
    weights are pinv(B^T) w: those whose product with B x is nearest to w x. Enlarged
    patches give exactly the old tokens; smaller ones lose what B loses.

    Args:
        state: official names.
        size: side of a patch in pixels, >= 1.
    Source: arXiv:2212.08013 section 3.4 (PI-resize), bilinear as there.
    """
    weight = np.asarray(state[PROJECTION])
    old = weight.shape[-1]
    if size == old:
        return dict(state)
    # B of two dimensions is the Kronecker product of its axes, and so is its pinv.
    inverse = np.linalg.pinv(probes.bilinear_weights(old, size, False).T)
    new = np.einsum(
        "am,bn,dcmn->dcab", inverse, inverse, weight.astype(np.float64), optimize=True
    )
    return dict(state) | {PROJECTION: new.astype(weight.dtype)}


def channels(state: State, number: int) -> dict:
    """The state dict with its patch projection for images of other channels.

    Every new channel gets the sum of the old channels' weights over `number`; from
    three channels that is their mean times 3/C. An image that repeats one gray channel
    so gives the same tokens with any number of channels, as long as all channels are
    normalised alike.

    Args:
        state: official names.
        number: C, >= 1.
    """
    weight = np.asarray(state[PROJECTION])
    if number == weight.shape[1]:
        return dict(state)
    new = weight.astype(np.float64).sum(1, keepdims=True) / number
    new = np.repeat(new, number, axis=1).astype(weight.dtype)
    return dict(state) | {PROJECTION: new}
