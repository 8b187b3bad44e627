"""Official names against those of timm's `vit_*_patch14_dinov2` models.

What timm's files hold otherwise:
- `mask_token` is dropped: timm never masks. On the way back it is zeros, its initial
  value; features of whole images do not depend on it.
- With registers, the position of the cls token is added into `cls_token`, and
  `pos_embed` loses that entry. The two summands cannot be told apart again: on the way
  back the sum is the cls token and its position is zero. Features stay the same to the
  bit, since only the sum ever enters the model.
- A table that has entries for the registers too, as timm makes it without
  `no_embed_class`, adds them to the registers on the way back.
- `register_tokens` is called `reg_token`, and SwiGLU's `w12`, `w3` are `fc1`, `fc2`.
"""

import math
import re
from collections.abc import Collection, Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import infer, tables
from dinov2_jax.models import layers, vit

RENAMED = {
    "register_tokens": "reg_token",
    "mlp.w12": "mlp.fc1",
    "mlp.w3": "mlp.fc2",
}
DROPPED = ("mask_token",)

_INDEX = r"blocks\.(\d+)\."


def name(official: str) -> str:
    """timm's name for an official one."""
    for old, new in RENAMED.items():
        official = official.replace(old, new)
    return official


def recognises(tensors: Mapping) -> bool:
    """Whether these are the names of a timm file: blocks, and no mask token."""
    return (
        "cls_token" in tensors
        and any(name.startswith("blocks.") for name in tensors)
        and not {"mask_token", "register_tokens"} & set(tensors)
    )


def swiglu(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the feed-forward is gated: its first layer gives two halves."""
    both = [tensors.get(f"blocks.0.mlp.fc{i}.weight") for i in (1, 2)]
    if any(weight is None or np.ndim(weight) != 2 for weight in both):
        return False
    return both[0].shape[0] == 2 * both[1].shape[1]


def from_official(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of a timm file from an official state dict.

    Args:
        tensors: official names, blocks unchunked.
    Returns: timm's names; each official tensor is used once, but for the mask token.
    Raises: ValueError that lists names if the architecture is none that timm has.
    """
    expected = tables.complete(tensors)
    tables.check(tensors, expected, "timm compatible official")
    found = {name(n): np.asarray(tensors[n]) for n in expected if n not in DROPPED}
    if "register_tokens" in tensors:
        position = found["pos_embed"]
        # In float32, as models add them; half precision would round the sum.
        parts = found["cls_token"], position[:, :1]
        found["cls_token"] = sum(part.astype(np.float32) for part in parts)
        found["pos_embed"] = np.ascontiguousarray(position[:, 1:])
    return found


def to_official(
    tensors: Mapping[str, np.ndarray],
    partial: bool = False,
    sizes: Collection[object] = (),
) -> dict[str, np.ndarray]:
    """Official state dict from the tensors of a timm file.

    Args:
        tensors: timm's names.
        partial: take what there is, and keep what is unexpected under its own name.
        sizes: see `positions_of_registers`.
    Returns: official names, blocks unchunked, with a mask token of zeros; with
        registers the cls token's position is zero (see above).
    Raises: ValueError that lists missing and unexpected names.
    """
    optional = ("attn.qkv.bias", "ls1.gamma", "ls2.gamma")
    official = tables.official(
        tables.depth(tensors, _INDEX),
        "swiglu" if swiglu(tensors) else "mlp",
        "reg_token" in tensors,
        [n for n in optional if f"blocks.0.{n}" not in tensors],
    )
    kept = [n for n in official if n not in DROPPED]
    if not partial:
        tables.check(tensors, map(name, kept), "timm")
    tensors = {n: np.asarray(value) for n, value in tensors.items()}
    rest = {n: tensors[n] for n in sorted(set(tensors) - set(map(name, kept)))}
    cls = tensors["cls_token"]
    if cls.ndim != 3:
        raise errors.InputError(
            f"cls_token has shape {cls.shape}; timm's is (1, 1, width)."
        )
    made = {
        "mask_token": np.zeros(cls.shape[1:], tensors.get("norm.weight", cls).dtype)
    }
    if {"reg_token", "pos_embed"} <= set(tensors):
        if positions_of_registers(tensors, sizes):
            made |= _moved(tensors["pos_embed"], tensors["reg_token"])
        else:
            first = np.zeros(cls.shape, tensors["pos_embed"].dtype)
            made["pos_embed"] = np.concatenate([first, tensors["pos_embed"]], axis=1)
    there = (n for n in official if n in made or name(n) in tensors)
    return {n: made[n] if n in made else tensors[name(n)] for n in there} | rest


def positions_of_registers(
    tensors: Mapping[str, np.ndarray], sizes: Collection[object] = ()
) -> bool:
    """Whether the position table has entries for the cls token and the registers, too.

    Args:
        tensors: timm's names.
        sizes: pixels of the table, as far as they are told; else it is one that is no
            square, but is without these entries.
    """
    needed = ("pos_embed", "reg_token", "patch_embed.proj.weight")
    shapes = [np.shape(tensors.get(name, ())) for name in needed]
    if [len(shape) for shape in shapes] != [3, 3, 4]:
        return False
    entries, patch = shapes[0][1], shapes[2][-1]
    rest = entries - 1 - shapes[1][1]
    told = {math.prod(infer.patches(size, patch)) for size in sizes} - {0}
    if told & {entries, rest}:
        return entries not in told
    return rest > 0 and not _square(entries) and _square(rest)


def _square(number: int) -> bool:
    """Whether a number is the square of another."""
    return math.isqrt(number) ** 2 == number


def _moved(table: np.ndarray, registers: np.ndarray) -> dict[str, np.ndarray]:
    """Official position table and registers, which take their positions' entries."""
    own = slice(1, 1 + registers.shape[1])
    # In float32, as the model adds them; half precision would round the sum.
    parts = [part.astype(np.float32) for part in (registers, table[:, own])]
    return {"pos_embed": np.delete(table, own, axis=1), "register_tokens": sum(parts)}


def about(config: Mapping) -> dict:
    """What the `config.json` of a timm folder tells of a model beside its tensors.

    Returns: arguments of `ViT`: heads and image_size, where it tells them.
    """
    found, given = {}, dict(config.get("model_args") or {})
    name = str(config.get("architecture"))
    for letter, size in NAMES.items():
        released = vit.VARIANTS[letter]
        same = config.get("num_features") == released["width"]
        if same and re.match(rf"vit_{size}_patch\d+_.*dinov2", name):
            found["heads"] = released["heads"]
    renamed = {"num_heads": "heads", "img_size": "image_size"}
    return found | {
        ours: given[name] for name, ours in renamed.items() if name in given
    }


def resize() -> dict:
    """How timm resizes positions, as arguments of `ViT`: always antialiased."""
    return {"antialias": True, "offset": 0.0}


NAMES = {"S": "small", "B": "base", "L": "large", "g": "giant"}
"""Size letter -> the size in timm's names."""


def model(about: Mapping) -> tuple[str, dict]:
    """Name and arguments for `timm.create_model`.

    Args:
        about: arguments of `ViT`: width, depth, heads, and those of patch_size,
            image_size, in_channels, registers, ffn and mlp_ratio that are not the
            defaults of `ViT`.
    Returns: the name of a released model, and what to change of it, {} for nothing.
    """
    registers = about.get("registers", 0)
    middle = "reg4_" if registers else ""
    found = {"reg_tokens": registers} if registers not in (0, 4) else {}
    for theirs, ours, default in (
        ("img_size", "image_size", 518),
        ("patch_size", "patch_size", 14),
        ("in_chans", "in_channels", 3),
        ("qkv_bias", "qkv_bias", True),
    ):
        if about.get(ours, default) != default:
            found[theirs] = about[ours]
    sizes = {k: about[k] for k in ("width", "depth", "heads")}
    sizes |= {"ffn": about.get("ffn", "mlp"), "mlp_ratio": about.get("mlp_ratio", 4.0)}
    for letter, name in NAMES.items():
        if sizes == {"ffn": "mlp", "mlp_ratio": 4.0} | vit.VARIANTS[letter]:
            return f"vit_{name}_patch14_{middle}dinov2", found
    found |= {
        "embed_dim": about["width"],
        "depth": about["depth"],
        "num_heads": about["heads"],
    }
    gated, ratio = sizes["ffn"] == "swiglu", sizes["mlp_ratio"]
    if gated:  # theirs counts both halves; half a unit more makes int(...) exact
        hidden = 2 * layers.swiglu_hidden(int(about["width"] * ratio))
        found["mlp_ratio"] = (hidden + 0.5) / about["width"]
    elif ratio != 4:
        found["mlp_ratio"] = ratio
    return f"vit_{'giant' if gated else 'small'}_patch14_{middle}dinov2", found
