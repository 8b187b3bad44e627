"""Whether a written file is what it should be: its tensors, and its features.

The features of the file, by its own format's package, are held against ours on the
same images. Where that package resizes positions differently, ours are computed its
way, so that a difference is one of the weights or of arithmetic.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import (
    adapt,
    export,
    huggingface,
    infer,
    mapped,
    names,
    onnx,
    peers,
    read,
    stablehlo,
    tables,
    timm,
)
from dinov2_jax.models import layers, vit

PEERS = {
    "official": peers.official,
    "huggingface": peers.huggingface,
    "timm": peers.timm,
    "onnx": peers.onnxruntime,
    "stablehlo": peers.jax_export,
}

TOLERANCE = 1e-4
"""Of the largest absolute feature; see `Difference.within`."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest absolute differences between a file's features and ours."""

    size: tuple[int, int]  # pixels, rows and columns
    cls: float
    patches: float
    scale_cls: float  # largest absolute feature of ours
    scale_patches: float

    def within(self, tolerance: float) -> bool:
        """Whether both differ by at most that share of the largest feature.

        Another order of float32 sums differs by 1e-6 of the largest feature, and by
        5e-5 in a backbone with channels a hundred times the others; weights kept in
        half precision differ by 4e-4 and more, and a tensor in the wrong place by 0.1
        (measured on 12 and on 40 blocks of S, random weights).
        """
        return (
            self.cls <= tolerance * self.scale_cls
            and self.patches <= tolerance * self.scale_patches
        )


def resize(kind: str, model: vit.ViT) -> dict:
    """How a format's own package resizes positions, as arguments of `ViT`."""
    own = {"antialias": model.antialias, "offset": model.offset}
    theirs = {
        "official": infer.resize(model.registers),
        "huggingface": huggingface.resize(model.registers),
        "timm": timm.resize(),
    }
    return theirs.get(kind, own)


def ours(
    model: vit.ViT, params: Mapping, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """cls [B D] and patch [B N D] features of [B H W C] images, full precision."""
    with jax.default_matmul_precision("highest"):
        found = jax.jit(model.apply)({"params": params}, images)
    return np.asarray(found.cls), np.asarray(found.patches)


def features(
    kind: str,
    path: pathlib.Path,
    model: vit.ViT,
    params: Mapping,
    about: Mapping,
    stacks: Sequence[np.ndarray],
) -> tuple[list[Difference], str]:
    """How far a file's features, by its own package, lie from ours.

    Args:
        kind: format of the file.
        path: the file or folder.
        model: our backbone.
        params: its parameters.
        about: arguments of `ViT`, for the other side.
        stacks: images [B H W C] of one size each.
    Returns: a difference for each stack, and what ran on the other side.
    Raises: peers.Absent if the other side's package is not installed.
    """
    if kind == "safetensors":
        theirs, ran = _read_back(path, model, params, stacks), "read back"
    else:
        theirs, ran = PEERS[kind](path, about, stacks)
    model = model.clone(**resize(kind, model))
    found = []
    for images, other in zip(stacks, theirs):
        mine = ours(model, params, images)
        worst = [float(np.abs(a - b).max()) for a, b in zip(mine, other)]
        scale = [float(np.abs(a).max()) for a in mine]
        found.append(Difference(images.shape[1:3], *worst, *scale))
    return found, ran


def _read_back(
    path: pathlib.Path, model: vit.ViT, params: Mapping, stacks: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features by our own model, of the tensors that a file holds."""
    state = read.read_weights(path).backbone
    again = names.backbone_from_official(state, params)
    return [ours(model, again, images) for images in stacks]


def sizes(own: tuple[int, int], patch: int, dynamic: bool) -> list[tuple[int, int]]:
    """Image sizes on which a file is compared: the model's own, or three of them."""
    rows, columns = own
    smaller = max(rows // patch // 2, 1) * patch
    others = [(rows + 2 * patch, columns + patch), (smaller, columns)]
    return [own, *(others if dynamic else [])]


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Which tensors of a source a file gives back, bit for bit."""

    total: int
    lost: list[str]  # names of the others, and of any that the source has not

    def __str__(self) -> str:
        """`174/174`, or fewer with the names that the format folds or drops."""
        count = f"{self.total - len(self.lost)}/{self.total}"
        lost = ", ".join(self.lost)
        return f"{count} (folded or dropped: {lost})" if lost else count


def folded(kind: str, registers: int) -> set[str]:
    """Official names whose tensors a format does not keep as they are."""
    if kind == "timm":
        return {"mask_token"} | ({"cls_token", "pos_embed"} if registers else set())
    if kind == "onnx":
        return {"mask_token", "cls_token", "pos_embed", "register_tokens"}
    return set()


def tensors(
    kind: str,
    path: pathlib.Path,
    backbone: Mapping[str, np.ndarray],
    params: Mapping,
    heads: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> Tensors:
    """Compare a file's tensors with the source's, bit for bit.

    Args:
        kind: format of the file.
        path: the file or folder.
        backbone: official state dict of the source.
        params: our parameters from it, which a StableHLO folder holds.
        heads: heads that the file should hold too.
    Returns: what is equal; `folded` tells which losses are the format's own.
    """
    wanted = dict(backbone)
    if kind == "stablehlo":
        wanted = stablehlo.leaves(params)
        found = mapped.tensors(path / "weights.safetensors")[0]
    elif kind == "onnx":
        found = onnx.constants(path)
        wanted = {name: onnx.stored(name, value) for name, value in backbone.items()}
    else:
        again = read.read_weights(path)
        found = dict(again.backbone)
        for head, state in (heads or {}).items():
            wanted |= {f"{head}.{name}": value for name, value in state.items()}
            given = again.heads.get(head, {})
            found |= {f"{head}.{name}": value for name, value in given.items()}
    lost = [n for n, value in wanted.items() if not same(found.get(n), value)]
    if kind != "onnx":  # whose graph has constants of its own
        lost += sorted(set(found) - set(wanted))
    return Tensors(len(wanted), lost)


def architecture(kind: str, path: pathlib.Path) -> tuple[dict, str]:
    """Arguments of `ViT` that a file itself tells, and a line if heads are a guess."""
    if kind == "onnx":
        return onnx.about(path), ""
    if kind == "stablehlo":
        return stablehlo.about(path), ""
    again = read.read_weights(path)
    return again.about, again.guess


def _computes(about: Mapping) -> dict:
    """What arguments of `ViT` make a backbone compute, in one form."""
    hidden = int(about["width"] * about["mlp_ratio"])
    gated = about["ffn"] == "swiglu"
    return {key: about.get(key) for key in export.DESCRIBING} | {
        "layerscale": about["layerscale"] is not None,
        "image_size": adapt.pair(about["image_size"]),
        "mlp_ratio": layers.swiglu_hidden(hidden) if gated else hidden,
    }


def written(
    kind: str,
    path: pathlib.Path,
    model: vit.ViT,
    params: Mapping,
    backbone: Mapping[str, np.ndarray],
    heads: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> tuple[Tensors, dict]:
    """Read a file back that was written for a model.

    Args:
        kind, path, backbone, params, heads: as of `tensors`.
        model: whose weights they are.
    Returns: how its tensors compare, and the arguments of `ViT` that it tells.
    Raises: ValueError if it does not give the tensors or the architecture back.
    """
    equal = tensors(kind, path, backbone, params, heads)
    broken = set(equal.lost) - folded(kind, model.registers)
    told, guess = architecture(kind, path)
    theirs, own = _computes(told), _computes(export.about(model))
    broken |= {key for key in own if theirs[key] != own[key]}
    broken |= {"heads"} if guess else set()
    if broken:
        raise errors.InputError(
            f"{path.name} does not give back {tables.some(broken)}; nothing is kept. "
            "This is a mistake of the converter: please report it."
        )
    return equal, told


def same(a: np.ndarray | None, b: np.ndarray) -> bool:
    """Whether two arrays have one type, one shape and the same bits."""
    if a is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (np.ascontiguousarray(x).view(np.uint8) for x in (a, b))
    return bool(np.array_equal(a, b))


def images(
    sizes: Sequence[tuple[int, int]], channels: int, number: int = 2
) -> list[np.ndarray]:
    """Stacks of normal noise [B H W C], the same on every call."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(number, *size, channels)).astype(np.float32) for size in sizes
    ]
