"""A network of a file under official names, whatever the file calls its parts."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import finite, huggingface, lookalikes, names, sift, timm

MULTIPLE = 8
"""The hidden width of a SwiGLU is one of it, in the reference and in `models.layers`."""


@dataclasses.dataclass(frozen=True)
class Official:
    """A network under official names."""

    backbone: dict[str, np.ndarray]  # unchunked
    heads: dict[str, dict[str, np.ndarray]]  # by name, or empty
    format: str  # official, training, huggingface or timm
    lines: list[str]  # what was read otherwise than it stands in the file


def official(
    network: sift.Network,
    partial: bool = False,
    sizes: Collection[object] = (),
    described: bool = False,
) -> Official:
    """The backbone of a network under official names, and its heads.

    Args:
        network: of `sift.network`.
        partial: take what there is; else a tensor too few or too many is an error.
        sizes: pixels of the position table, as the file or the caller tells them.
        described: whether a description says that it is a DINOv2 backbone: a grid of
            3x5 patches and cls have as many positions as one of 4x4 without cls.
    Raises: ValueError that says what else it looks like.
    """
    tensors = {n: v for n, v in network.tensors.items() if not sift.BESIDE.match(n)}
    kind = None if described else lookalikes.model(tensors)
    if kind:
        kind = lookalikes.model(network.group) or kind
        raise errors.InputError(
            f"It looks like {kind}, not a DINOv2 backbone. {sift.NEEDED}."
        )
    tensors, lines = _mended(tensors, network.tensors)
    heads = _heads(network) if network.prefix.endswith("backbone.") else {}
    if huggingface.recognises(tensors):
        found, label = huggingface.to_official(tensors, partial), "huggingface"
    elif timm.recognises(tensors):
        found, label = timm.to_official(tensors, partial, sizes), "timm"
        if timm.positions_of_registers(tensors, sizes):
            lines.append(
                "its first positions are taken for those of the cls token and registers"
            )
    else:
        found = names.unchunked(tensors)
        label = "training" if heads or network.role else "official"
    found, widths = _padded(found)
    lines += widths
    for name, value in found.items():
        if np.asarray(value).dtype not in finite.EXPONENTS:
            raise errors.InputError(
                f"{name} is of type {np.asarray(value).dtype}; weights need float16, "
                "bfloat16, float32 or float64. Give a file that is not quantised."
            )
    if not {"mask_token", "embeddings.mask_token"} & set(tensors):
        lines.append("it has no mask token; zeros stand in for it")
        cls = np.asarray(found.get("cls_token", np.zeros((1, 1, 1), np.float32)))
        found.setdefault("mask_token", np.zeros(cls.shape[-1:], cls.dtype)[None])
    if not any(n.endswith("ls1.gamma") for n in found):
        lines.append(
            "it has no LayerScale: a plain ViT, such as DINO v1's, iBOT's or a "
            "supervised one"
        )
    return Official(found, heads, label, lines)


def _mended(
    tensors: dict[str, np.ndarray], beside: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors with other names for the same parts replaced, and lines that tell it."""
    found, lines = dict(tensors), []
    if "masked_embed" in found:  # iBOT's name
        found["mask_token"] = found.pop("masked_embed")
    if "norm.weight" not in found and {"fc_norm.weight", "fc_norm.bias"} <= set(beside):
        found |= {f"norm.{k}": beside[f"fc_norm.{k}"] for k in ("weight", "bias")}
        lines.append(
            "fc_norm, which norms the mean of the patches, is read as the final norm, "
            "which norms each token"
        )
    return found, lines


def _padded(state: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """SwiGLUs of any hidden width with zeros up to a multiple, and a line if there are.

    timm does not round the width. Hidden units whose weights are 0 give 0, and features
    stay the same.
    """
    found, odd = dict(state), set()
    for name in [n for n in state if n.endswith("mlp.w12.weight")]:
        block = name.removesuffix("w12.weight")
        parts = {part: f"{block}{part}" for part in ("w12.weight", "w12.bias")}
        parts = {n: np.asarray(state[n]) for n in parts.values() if n in state}
        last = np.asarray(state.get(f"{block}w3.weight", 0))
        rows = {value.shape[0] if value.ndim else 0 for value in parts.values()}
        half = last.shape[1] if last.ndim == 2 else 0
        if rows != {2 * half} or half % MULTIPLE == 0:
            continue  # whole, or of shapes that the model will refuse by name
        more = -half % MULTIPLE
        for n, value in parts.items():
            halves = value.reshape(2, half, *value.shape[1:])
            wide = np.pad(halves, [(0, 0), (0, more), *[(0, 0)] * (value.ndim - 1)])
            found[n] = wide.reshape(-1, *value.shape[1:])
        found[f"{block}w3.weight"] = np.pad(last, [(0, 0), (0, more)])
        odd.add(half)
    return found, [
        f"its SwiGLU of {half} hidden units is padded with zeros to "
        f"{half + -half % MULTIPLE}; features stay the same"
        for half in sorted(odd)
    ]


def _heads(network: sift.Network) -> dict[str, dict[str, np.ndarray]]:
    """The DINO and iBOT heads beside a backbone, by name."""
    found = {}
    for head in sift.HEADS:
        start = f"{network.parent}{head}."
        part = {
            n[len(start) :]: v for n, v in network.group.items() if n.startswith(start)
        }
        if part:
            found[head] = part
    return found
