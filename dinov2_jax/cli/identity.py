"""What tells one backbone from another: its weights, and what it computes with them."""

import dataclasses
import hashlib

import jax
import numpy as np

from dinov2_jax import tree
from dinov2_jax.models import vit

OPERATION = (
    *("parent", "name", "dtype", "gather", "remat", "unroll"),
    *("drop_path", "uniform_drop"),
)
"""Fields of a backbone on which no feature depends; a dtype is told by itself."""


def digest(params: dict) -> str:
    """Equal for equal weights of the same names and shapes."""
    found = hashlib.sha256()
    for name, leaf in zip(tree.names(params), jax.tree.leaves(params), strict=True):
        found.update(f"{name} {leaf.shape} {leaf.dtype} ".encode())
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()


def architecture(backbone: vit.ViT) -> dict:
    """What a backbone computes from its weights, apart from its dtype."""
    fields = (field.name for field in dataclasses.fields(backbone))
    return {k: getattr(backbone, k) for k in sorted(fields) if k not in OPERATION}
