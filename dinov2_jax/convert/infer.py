"""What can be told from the tensors of a file: an architecture, or what else it is."""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import tables
from dinov2_jax.models import layers, vit

HEAD_WIDTH = 64
"""Width of an attention head in every released model."""

LOOKS = {
    r"layer1\.0\.conv1\.|conv1\.weight": "a ResNet",
    r"(.*\.)?_?flat_param(_\d+)?$": (
        "one process's shards of an FSDP run; the same run's eval/*/"
        "teacher_checkpoint.pth is whole"
    ),
    r"param_groups$|exp_avg(_sq)?$|optimizer\.": "an optimizer's state",
    r"storage_tokens|rope_embed\.": "a DINOv3 backbone, which has no position table",
    r"dinov2(_with_registers)?\.embeddings\.": (
        "a transformers model with a task's head; save its backbone alone, as "
        "model.dinov2.save_pretrained(FOLDER)"
    ),
    r"decode_head\.|classifiers_dict\.|(linear_head\.)?(weight|bias)$": (
        "a linear, segmentation or depth head, which goes on a backbone"
    ),
    r"last_layer\.weight": "a DINO projection head without its backbone",
}
"""Pattern of a tensor's name -> what a file with it is, in the order of asking."""


def looks(found: Iterable[str]) -> str | None:
    """What a file with these names is, if it is known to be no DINOv2 backbone."""
    found = set(found)
    for pattern, kind in LOOKS.items():
        if any(re.match(pattern, name) for name in found):
            return kind
    block = {name for name in found if name.startswith("blocks.")}
    scaled = any(name.endswith("ls1.gamma") for name in block)
    if block and "mask_token" not in found and not scaled:
        return (
            "a Vision Transformer without LayerScale and mask token, such as DINO v1's, "
            "DeiT's or a supervised one"
        )
    return None


def architecture(state: Mapping[str, np.ndarray]) -> dict:
    """Arguments of `ViT` that made an official state dict.

    Args:
        state: official names, unchunked.
    Returns: width, depth, patch_size, image_size, in_channels, registers, ffn,
        mlp_ratio, layerscale, qkv_bias, proj_bias, ffn_bias; heads if the width is a
        multiple of 64; antialias and offset as released; besides, grid (image_size
        over patch_size) and, for a known size, variant (`S/14`).
    Raises: ValueError if a tensor that tells a size is missing or of another shape.
    """
    width = _shape(state, "cls_token", 3)[2]
    channels, patch = _shape(state, "patch_embed.proj.weight", 4)[1:3]
    positions = _shape(state, "pos_embed", 3)[1] - 1
    grid = math.isqrt(max(positions, 0))
    if grid * grid != positions or not grid:
        raise errors.InputError(
            f"pos_embed has {positions + 1} entries; it needs one for cls and a square "
            "grid, 1 + M*M."
        )
    registers = 0
    if "register_tokens" in state:
        registers = _shape(state, "register_tokens", 3)[1]
    gated = "blocks.0.mlp.w12.weight" in state
    first, last = ("mlp.w12", "mlp.w3") if gated else ("mlp.fc1", "mlp.fc2")
    rows = _shape(state, f"blocks.0.{first}.weight", 2)[0]
    found = {
        "width": width,
        "depth": tables.depth(state, r"blocks\.(\d+)\."),
        "patch_size": patch,
        "image_size": grid * patch,
        "grid": grid,
        "in_channels": channels,
        "registers": registers,
        "ffn": "swiglu" if gated else "mlp",
        "mlp_ratio": _ratio(width, rows, gated),
        "layerscale": 1.0 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        "ffn_bias": f"blocks.0.{last}.bias" in state,
        **resize(registers),
    }
    if width % HEAD_WIDTH == 0:
        found["heads"] = width // HEAD_WIDTH
    return named(found)


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
