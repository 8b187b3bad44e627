"""Tables between this package's parameter tree and the official state-dict names.

Official weights are PyTorch's: linear (out, in), the patch projection (D, C, p, p), one
entry a block. Here a kernel is (in, out) and blocks are stacked along a first axis.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
import numpy as np

from dinov2_jax import errors, tree
from dinov2_jax.convert import tables

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "gamma": "gamma",
}
"""Last part of our names -> last part of the official ones."""

NEWER_NORM = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}
"""Names of PyTorch's newer weight norm -> those of the reference's."""


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
    """Our parameters of a DINO head from its official state dict, each entry used once.

    Args:
        state: official names; PyTorch's newer names of a weight norm are known too.
    Returns: NumPy arrays of the file's dtype.
    Raises: ValueError if the names are not those of such a head, or a shape not.
    """
    state = {NEWER_NORM.get(name, name): np.asarray(v) for name, v in state.items()}
    hits = (re.fullmatch(r"mlp(?:\.(\d+))?\.weight", name) for name in state)
    numbers = sorted(int(hit[1] or 0) for hit in hits if hit)
    depth = len(numbers)
    layers = ["mlp"] if depth == 1 else [f"mlp.{2 * i}" for i in range(depth)]
    ranks = {f"{layer}.weight": 2 for layer in layers}
    ranks |= {f"{layer}.bias": 1 for layer in layers}
    ranks |= {"last_layer.weight_v": 2, "last_layer.weight_g": 2}
    missing, unexpected = set(ranks) - set(state), set(state) - set(ranks)
    wrong = [
        f"{name}: {state[name].shape}"
        for name, rank in ranks.items()
        if name in state and state[name].ndim != rank
    ]
    if missing or unexpected or wrong:
        raise errors.InputError(
            f"This is no DINO head of {depth} layers: missing "
            f"{tables.some(missing)}; unexpected {tables.some(unexpected)}; "
            f"mis-shaped {tables.some(wrong)}. Heads with batch norm or without bias "
            "are not known."
        )
    params = {
        f"mlp_{i}": {
            "kernel": state[f"{layer}.weight"].T,
            "bias": state[f"{layer}.bias"],
        }
        for i, layer in enumerate(layers)
    }
    v, g = state["last_layer.weight_v"], state["last_layer.weight_g"]
    params["last_layer"] = {"v": v.T, "g": g[:, 0]}
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


def unchunked(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with `blocks.1.7.attn...` of a chunked model as `blocks.7.attn...`.

    Raises: ValueError if a block is there twice.
    """
    chunk = re.compile(r"^blocks\.\d+\.(\d+)\.")
    found = {chunk.sub(r"blocks.\1.", name): value for name, value in state.items()}
    if len(found) != len(state):
        raise errors.InputError(
            "Some blocks are there twice, in a chunk and by themselves."
        )
    return found


@dataclasses.dataclass(frozen=True)
class Match:
    """How an official state dict fits a model, by official names."""

    total: int  # tensors that the model has
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]  # with both shapes

    @property
    def matched(self) -> int:
        """Tensors of the model that the state dict gives."""
        return self.total - len(self.missing) - len(self.misshaped)

    @property
    def whole(self) -> bool:
        """Whether every tensor has its place and every place its tensor."""
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        """The lists, cut where they grow long."""
        return (
            f"{self.matched}/{self.total} tensors match; "
            f"missing {tables.some(self.missing)}; "
            f"unexpected {tables.some(self.unexpected)}; "
            f"mis-shaped {tables.some(self.misshaped)}"
        )


def match_backbone(state: Mapping[str, np.ndarray], template: Mapping) -> Match:
    """Compare an unchunked official state dict with a model; see `fill_backbone`."""
    shapes, missing, misshaped = _official_shapes(template), [], []
    for name, wanted in shapes.items():
        if name not in state:
            missing.append(name)
        elif not _fits(name, np.shape(state[name]), wanted):
            shape = np.shape(state[name])
            misshaped.append(f"{name}: {shape}, the model has {wanted}")
    return Match(len(shapes), missing, sorted(set(state) - set(shapes)), misshaped)


def _official_shapes(template: Mapping) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of all tensors of a model.

    The tree stores the patch projection flattened, so its entry is (D, C*p*p).
    """
    found = {}
    for path, leaf in jax.tree.leaves_with_path(template):
        name = tree.path_name(path)
        official = _official_backbone_name(name)
        if name.startswith("blocks/"):
            # A kernel is transposed; of one axis the reverse is itself.
            shape = leaf.shape[:0:-1]
            found |= {f"blocks.{i}.{official}": shape for i in range(leaf.shape[0])}
        else:
            found[official] = (
                leaf.shape[::-1] if name.endswith("/kernel") else leaf.shape
            )
    return found


def _fits(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor has the wanted shape; a position table may have any grid."""
    if name == "pos_embed":
        return len(shape) == 3 and (shape[0], shape[2]) == (wanted[0], wanted[2])
    if name == "patch_embed.proj.weight":
        return len(shape) == 4 and (shape[0], math.prod(shape[1:])) == wanted
    return shape == wanted


def fill_backbone(
    state: Mapping[str, np.ndarray], template: Mapping, match: Match
) -> dict:
    """Our parameters of what fits, and the template's of what does not.

    Args:
        state: official names, unchunked.
        template: tree of the model; arrays wherever the match has holes.
        match: of the two.
    Returns: NumPy arrays; the position table keeps the file's grid.
    """
    wrong = {line.split(":")[0] for line in match.misshaped}
    usable = {n: np.asarray(v) for n, v in state.items() if n not in wrong}

    def fill(name: str, leaf) -> np.ndarray:
        official = _official_backbone_name(name)
        if not name.startswith("blocks/"):
            if official not in usable:
                return np.asarray(leaf)
            value = usable[official]
            if name == "patch_embed/kernel":
                value = value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
            return np.ascontiguousarray(value)
        parts = []
        for i in range(leaf.shape[0]):
            value = usable.get(f"blocks.{i}.{official}")
            if value is None:
                parts.append(np.asarray(leaf[i]))
            else:
                parts.append(value.T if name.endswith("/kernel") else value)
        return np.stack(parts)

    return tree.map_named(fill, template)


def backbone_from_official(state: Mapping[str, np.ndarray], template: Mapping) -> dict:
    """Our backbone parameters from an official state dict, each entry used once.

    Args:
        state: official names, blocks chunked or not.
        template: tree of arrays or ShapeDtypeStructs of the model to fill.
    Returns: the filled tree, NumPy arrays; the position table keeps the file's grid.
    Raises: ValueError that lists what is missing, unexpected and mis-shaped.
    """
    state = unchunked(state)
    match = match_backbone(state, template)
    if not match.whole:
        raise errors.InputError(
            f"These weights are of another architecture: {match}. Choose the variant, "
            "registers and feed-forward that they were trained with, or load what fits "
            "(partial=True, --partial, init.partial=True)."
        )
    return fill_backbone(state, template, match)
