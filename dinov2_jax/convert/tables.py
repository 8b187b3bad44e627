"""The official names of a backbone, and the check that every tensor is used once.

Other formats' tables are made of these names: each gives, for a list of official
names, the names that hold the same numbers in its own files.
"""

import re
from collections.abc import Collection, Iterable

from dinov2_jax import errors

OUTSIDE = (
    "cls_token",
    "pos_embed",
    "mask_token",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
)
"""Official names of what no block holds; models with registers add their tokens."""

BLOCK = (
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "ls1.gamma",
    "norm2.weight",
    "norm2.bias",
)
"""Official names inside a block, before its feed-forward."""

FEED_FORWARD = {"mlp": ("mlp.fc1", "mlp.fc2"), "swiglu": ("mlp.w12", "mlp.w3")}


def official(
    depth: int, ffn: str, registers: bool, without: Collection[str] = ()
) -> list[str]:
    """Official names of a backbone, in the order of its state dict.

    Args:
        depth: number of blocks.
        ffn: `mlp` or `swiglu`.
        registers: whether it has register tokens.
        without: names inside a block that it lacks, such as `attn.qkv.bias`.
    """
    feed = [f"{name}.{k}" for name in FEED_FORWARD[ffn] for k in ("weight", "bias")]
    inside = [name for name in (*BLOCK, *feed, "ls2.gamma") if name not in without]
    first = list(OUTSIDE[:3]) + ["register_tokens"] * registers
    blocks = [f"blocks.{i}.{name}" for i in range(depth) for name in inside]
    return first + list(OUTSIDE[3:5]) + blocks + list(OUTSIDE[5:])


def complete(names: Collection[str]) -> list[str]:
    """Official names of the backbone that some official names are of, in order.

    Args:
        names: official names, blocks unchunked; a few of them tell the architecture.
    """
    return official(
        depth(names, r"blocks\.(\d+)\."),
        "swiglu" if "blocks.0.mlp.w12.weight" in names else "mlp",
        "register_tokens" in names,
        () if "blocks.0.attn.qkv.bias" in names else ("attn.qkv.bias",),
    )


def depth(names: Iterable[str], pattern: str) -> int:
    """Number of blocks that names speak of.

    Args:
        names: names of tensors.
        pattern: regular expression of a block's first part, its number as a group.
    Returns: how many numbers there are, whatever they are, so that a file with block
        100000000 alone costs nothing; the gap shows as missing and unexpected names.
    """
    found = (re.match(pattern, name) for name in names)
    return len({hit[1] for hit in found if hit})


def some(names: Collection[str], most: int = 8) -> str:
    """Names for an error line, cut where they grow many."""
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"


def check(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Raises ValueError that lists names, unless both are the same set.

    Args:
        found: names that a file has.
        expected: names that its architecture has.
        what: the format, for the error.
    """
    found, expected = set(found), set(expected)
    if found != expected:
        raise errors.InputError(
            f"These are not the tensors of a {what} backbone: "
            f"missing {some(expected - found)}; unexpected {some(found - expected)}. "
            "Give a file of a DINOv2 backbone alone, as its own library writes it, or load "
            "what fits (partial=True, --partial, init.partial=True)."
        )
