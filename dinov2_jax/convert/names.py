"""Tables between this package's parameter tree and the official state-dict names.

Official weights are PyTorch's: linear (out, in), the patch projection (D, C, p, p), one
entry a block. Here a kernel is (in, out) and blocks are stacked along a first axis.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np

from dinov2_jax import tree

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "gamma": "gamma",
}
"""Last part of our names -> last part of the official ones."""


def _split(name: str) -> tuple[str, str]:
    """The leaf's module path and its last part."""
    path, _, last = name.rpartition("/")
    return path, last


def _official_head_name(name: str, depth: int) -> str:
    """`mlp_0/kernel` -> `mlp.0.weight`; with one layer `mlp.weight`."""
    path, last = _split(name)
    if path == "last_layer":
        return f"last_layer.weight_{last}"
    layer = "mlp" if depth == 1 else f"mlp.{2 * int(path.removeprefix('mlp_'))}"
    return f"{layer}.{LEAVES[last]}"


def head_to_official(params: Mapping) -> dict[str, np.ndarray]:
    """State dict of a DINO head, official names and layouts."""
    depth = sum(key.startswith("mlp_") for key in params)
    found = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name, value = tree.path_name(path), np.asarray(leaf)
        if name == "last_layer/g":
            value = value[:, None]
        elif value.ndim == 2:
            value = value.T
        found[_official_head_name(name, depth)] = np.ascontiguousarray(value)
    return found


def head_from_official(state: Mapping[str, np.ndarray]) -> dict:
    """Our parameters of a DINO head from its official state dict."""
    numbers = {re.match(r"mlp(\.\d+)?", k)[0] for k in state if k.startswith("mlp")}
    params = {}
    for i, layer in enumerate(sorted(numbers)):
        weight = np.asarray(state[f"{layer}.weight"]).T
        params[f"mlp_{i}"] = {"kernel": weight, "bias": state[f"{layer}.bias"]}
    v, g = state["last_layer.weight_v"], state["last_layer.weight_g"]
    params["last_layer"] = {"v": np.asarray(v).T, "g": np.asarray(g)[:, 0]}
    return jax.tree.map(np.ascontiguousarray, params)


def _official_backbone_name(name: str) -> str:
    """`blocks/attn/qkv/kernel` -> `attn.qkv.weight`; others likewise, without block."""
    path, last = _split(name.removeprefix("blocks/"))
    if name.startswith("patch_embed/"):
        return f"patch_embed.proj.{LEAVES[last]}"
    return ".".join([*path.split("/"), LEAVES[last]]) if path else last


def backbone_to_official(params: Mapping, patch_size: int) -> dict[str, np.ndarray]:
    """State dict of a backbone, official names, layouts and order.

    Args:
        params: the `backbone` tree.
        patch_size: side of a patch; the tree stores the projection flattened.
    Returns: name -> array of the parameter's dtype.
    """
    found, blocks = {}, {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name, value = tree.path_name(path), np.asarray(leaf)
        official = _official_backbone_name(name)
        if name.startswith("blocks/"):
            value = value.swapaxes(1, 2) if name.endswith("/kernel") else value
            blocks[official] = value
        elif name == "patch_embed/kernel":
            p = patch_size
            found[official] = value.reshape(p, p, -1, value.shape[-1]).transpose(
                3, 2, 0, 1
            )
        else:
            found[official] = value
    depth = next(iter(blocks.values())).shape[0]
    for i in range(depth):
        found |= {f"blocks.{i}.{name}": value[i] for name, value in blocks.items()}
    return {name: np.ascontiguousarray(value) for name, value in found.items()}


def _unchunked(name: str) -> str:
    """`blocks.1.7.attn...` of a chunked model -> `blocks.7.attn...`."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def backbone_from_official(state: Mapping[str, np.ndarray], template: Mapping) -> dict:
    """Our backbone parameters from an official state dict, each entry used once.

    Args:
        state: official names, blocks chunked or not.
        template: tree of arrays or ShapeDtypeStructs of the model to fill.
    Returns: the filled tree, NumPy arrays; the position table keeps the file's grid.
    Raises: ValueError that lists what is missing, unexpected and mis-shaped.
    """
    state = {_unchunked(name): np.asarray(value) for name, value in state.items()}
    unused, missing, misshaped = set(state), [], []

    def take(official: str) -> np.ndarray | None:
        unused.discard(official)
        if official not in state:
            missing.append(official)
        return state.get(official)

    def fill(name: str, leaf) -> np.ndarray | None:
        official = _official_backbone_name(name)
        if name.startswith("blocks/"):
            parts = [take(f"blocks.{i}.{official}") for i in range(leaf.shape[0])]
            if any(part is None for part in parts):
                return None
            if len({part.shape for part in parts}) > 1:
                misshaped.append(f"{official}: shapes differ between blocks")
                return None
            value = np.stack(parts)
            value = value.swapaxes(1, 2) if name.endswith("/kernel") else value
        else:
            value = take(official)
        if value is None:
            return None
        if name == "patch_embed/kernel" and value.ndim == 4:
            value = value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
        if name != "pos_embed" and value.shape != leaf.shape:
            misshaped.append(f"{official}: {value.shape}, the model has {leaf.shape}")
        return np.ascontiguousarray(value)

    params = tree.map_named(fill, template)
    if missing or unused or misshaped:
        raise ValueError(
            "These weights are of another architecture: "
            f"missing {_some(missing)}; unexpected {_some(sorted(unused))}; "
            f"mis-shaped {_some(misshaped)}. Choose the variant, registers and "
            "feed-forward that they were trained with."
        )
    return params


def _some(names: list[str], most: int = 8) -> str:
    """A list of names for an error line, cut where it grows long."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) if names else "nothing"
