"""The architecture that the tensors of a file tell."""

import math
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import adapt, tables
from dinov2_jax.models import layers, vit

HEADS = {size["width"]: size["heads"] for size in vit.VARIANTS.values()}
"""Width of a released model -> its number of attention heads."""


def architecture(
    state: Mapping[str, np.ndarray],
    told: object = None,
    image_size: adapt.Size | None = None,
) -> dict:
    """Arguments of `ViT` that made an official state dict.

    Args:
        state: official names, unchunked.
        told: pixels of the position table as its file tells them, one number or two;
            passed over if the table is of another size.
        image_size: the same as the caller tells, for a table that is not square.
    Returns: width, depth, patch_size, image_size, in_channels, registers, ffn,
        mlp_ratio, layerscale, qkv_bias, proj_bias, ffn_bias; heads, a guess, if the
        width is a released one; antialias and offset as released; besides, grid
        (image_size over patch_size) and, for a known size, variant (`S/14`).
    Raises: ValueError if a tensor that tells a size is missing or of another shape.
    """
    width = _shape(state, "cls_token", 3)[2]
    channels, patch = _shape(state, "patch_embed.proj.weight", 4)[1:3]
    positions = _shape(state, "pos_embed", 3)[1] - 1
    rows, columns = _grid(positions, patch, told, image_size)
    registers = 0
    if "register_tokens" in state:
        registers = _shape(state, "register_tokens", 3)[1]
    gated = "blocks.0.mlp.w12.weight" in state
    first, last = ("mlp.w12", "mlp.w3") if gated else ("mlp.fc1", "mlp.fc2")
    hidden = _shape(state, f"blocks.0.{first}.weight", 2)[0]
    found = {
        "width": width,
        "depth": tables.depth(state, r"blocks\.(\d+)\."),
        "patch_size": patch,
        "image_size": adapt.single(rows * patch, columns * patch),
        "grid": adapt.single(rows, columns),
        "in_channels": channels,
        "registers": registers,
        "ffn": "swiglu" if gated else "mlp",
        "mlp_ratio": _ratio(width, hidden, gated),
        "layerscale": 1.0 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        "ffn_bias": f"blocks.0.{last}.bias" in state,
        **resize(registers),
    }
    if width in HEADS:
        found["heads"] = HEADS[width]
    return named(found)


def _grid(
    positions: int, patch: int, told: object, image_size: adapt.Size | None
) -> tuple[int, int]:
    """Rows and columns of a position table of so many patches."""
    side = math.isqrt(max(positions, 0))
    square = side * side == positions and side > 0
    for size in (told, None if square else image_size):
        rows, columns = patches(size, patch)
        if rows > 0 and rows * columns == positions:
            return rows, columns
    if not square:
        raise errors.InputError(
            f"pos_embed has {positions + 1} entries, which are not one for cls and a "
            "square grid, 1 + M*M, and the file does not tell its rows and columns; "
            "give image_size=(rows, columns) of it in pixels (--image-size=ROWSxCOLUMNS)."
        )
    return side, side


def patches(size: object, patch: int) -> tuple[int, int]:
    """Rows and columns of patches of a size in pixels, one number or two; else zeros."""
    numbers = np.atleast_1d(size) if size is not None else np.zeros(0)
    if numbers.dtype.kind != "i" or numbers.shape not in ((1,), (2,)):
        return 0, 0
    rows, columns = (int(n) // patch for n in np.broadcast_to(numbers, 2))
    return rows, columns


def resize(registers: int) -> dict:
    """How a released model of so many registers resizes its positions.

    Source: the reference's `hubconf.py`.
    """
    return {"antialias": registers > 0, "offset": 0.0 if registers else 0.1}


def named(found: Mapping) -> dict:
    """The arguments with `variant` (`S/14`) if they are of a size of the table."""
    found = {key: value for key, value in found.items() if key != "variant"}
    for letter, size in vit.VARIANTS.items():
        wanted = {"ffn": "mlp", "mlp_ratio": 4.0} | size
        if all(found.get(key) == value for key, value in wanted.items()):
            return found | {"variant": f"{letter}/{found['patch_size']}"}
    return found


def _shape(state: Mapping[str, np.ndarray], name: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there and of that rank."""
    if name not in state:
        raise errors.InputError(
            f"These weights lack {name}, which tells their size; give a whole DINOv2 "
            "backbone."
        )
    shape = np.shape(state[name])
    if len(shape) != rank or 0 in shape:
        raise errors.InputError(
            f"{name} has shape {shape}; it needs {rank} sizes above 0."
        )
    return shape


def _ratio(width: int, rows: int, gated: bool) -> float:
    """The `mlp_ratio` whose first feed-forward layer has so many rows.

    Half a unit is added where the ratio is not whole, so that int(width * ratio) is
    exact; SwiGLU's own rounding hides the usual ratio of 4, which is tried first.
    """
    if gated and layers.swiglu_hidden(4 * width) == rows // 2:
        return 4.0
    hidden = -(-3 * (rows // 2) // 2) if gated else rows
    return hidden / width if hidden % width == 0 else (hidden + 0.5) / width
