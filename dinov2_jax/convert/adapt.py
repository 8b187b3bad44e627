"""A released backbone for another image size, patch size or number of channels.

All three take and return an official state dict, compute in float64 and round once.
"""

import math
from collections.abc import Mapping

import numpy as np

from dinov2_jax.models import posembed, probes

State = Mapping[str, np.ndarray]
PROJECTION = "patch_embed.proj.weight"


def grid(state: State, side: int, antialias: bool, offset: float) -> dict:
    """The state dict with its position table on another square grid.

    Args:
        state: official names.
        side: patches along a side wanted, >= 1.
        antialias, offset: of the model, see `posembed.resize_weights`. The model would
            resize at every call as it is done here once.
    """
    table = np.asarray(state["pos_embed"])
    old = math.isqrt(table.shape[1] - 1)
    if side == old:
        return dict(state)
    weights = posembed.resize_weights(old, side, antialias, offset)
    square = table[0, 1:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("hm,wn,mnd->hwd", weights, weights, square, optimize=True)
    resized = resized.reshape(1, side * side, -1).astype(table.dtype)
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
