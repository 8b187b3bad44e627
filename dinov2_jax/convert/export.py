"""Weights as files that others read; each writer fills a new file or folder.

Writers do not check what they wrote: `check` does, from the file itself.
"""

import json
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from dinov2_jax import errors, writing
from dinov2_jax.convert import huggingface, sidecar, tables, timm
from dinov2_jax.models import vit

DESCRIBING = (
    "width",
    "depth",
    "heads",
    "patch_size",
    "image_size",
    "in_channels",
    "registers",
    "ffn",
    "mlp_ratio",
    "layerscale",
    "qkv_bias",
    "proj_bias",
    "ffn_bias",
    "antialias",
    "offset",
)
"""Arguments of `ViT` that say what a backbone computes."""


def about(model: vit.ViT) -> dict:
    """What the writers need to know of a backbone, besides its tensors."""
    return {name: getattr(model, name) for name in DESCRIBING}


def write_safetensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], about: Mapping
) -> None:
    """A safetensors file, whole or not at all.

    Args:
        path: file to make; its folder is made too.
        tensors: name -> array.
        about: what describes the weights; stored as JSON under `dinov2_jax`. Give
            heads, antialias and offset, which the tensors do not tell.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"dinov2_jax": json.dumps(dict(about)), "format": "pt"}
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with writing.replacing(path) as part:
        safetensors.numpy.save_file(contiguous, part, metadata)
        part.chmod(0o644)  # the library makes files that nobody else can read


def chunked(tensors: Mapping[str, np.ndarray], chunks: int) -> dict[str, np.ndarray]:
    """Official names as a model of `block_chunks=chunks` has them.

    Args:
        tensors: official names, blocks unchunked.
        chunks: number of groups that the blocks are split into; 0 for none.
    Raises: ValueError if the blocks do not split so.
    Source: the reference's `DinoVisionTransformer`; block 7 is `blocks.1.7` if it is
        in the second chunk.
    """
    if not chunks:
        return dict(tensors)
    depth = tables.depth(tensors, r"blocks\.(\d+)\.")
    if chunks < 0 or depth % chunks:
        raise errors.InputError(
            f"{depth} blocks do not split into {chunks} chunks; give a divisor of "
            f"{depth}, or 0 for no chunks."
        )
    found = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            block = int(rest.partition(".")[0])
            name = f"blocks.{block // (depth // chunks)}.{rest}"
        found[name] = value
    return found


def write_official(
    path: pathlib.Path,
    backbone: Mapping[str, np.ndarray],
    heads: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    chunks: int = 0,
    about: Mapping | None = None,
) -> None:
    """A `.pth` file that the official models load with `strict=True`.

    Args:
        path: file to make.
        backbone: official names, blocks unchunked.
        heads: None for the backbone alone, as released; else the heads by name, and
            the file is one as the reference's training saves its teacher.
        chunks: see `chunked`; training checkpoints of the reference have 4.
        about: what describes the weights, written beside the file (`sidecar`), which
            has no place for it; None for nothing.
    Raises: ValueError if PyTorch is not installed.
    """
    state = chunked(backbone, chunks)
    torch = _torch()
    if heads is not None:
        state = {f"backbone.{name}": value for name, value in state.items()}
        for head, tensors in heads.items():
            state |= {f"{head}.{name}": value for name, value in tensors.items()}
    state = {name: _tensor(torch, value) for name, value in state.items()}
    torch.save(state if heads is None else {"teacher": state}, path)
    if about is not None:
        sidecar.write(path, about)


def write_huggingface(
    folder: pathlib.Path, backbone: Mapping[str, np.ndarray], about: Mapping
) -> None:
    """A folder that `AutoModel` and `AutoImageProcessor` of `transformers` load.

    It has no image processor for other than 3 channels, see `huggingface.processor`.

    Args:
        folder: folder to make.
        backbone: official names, blocks unchunked.
        about: arguments of `ViT`, see `huggingface.config`.
    Raises: ValueError if `transformers` has no such model.
    """
    config = huggingface.config(about)
    tensors = huggingface.from_official(backbone)
    config["torch_dtype"] = str(next(iter(tensors.values())).dtype)
    folder.mkdir(parents=True)
    processor = huggingface.processor(about)
    for name, content in (
        ("config.json", config),
        ("preprocessor_config.json", processor),
    ):
        if content is None:
            continue
        text = json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    write_safetensors(folder / "model.safetensors", tensors, about)


def write_timm(
    path: pathlib.Path, backbone: Mapping[str, np.ndarray], about: Mapping
) -> None:
    """A file for `timm.create_model(..., checkpoint_path=...)`.

    Args:
        path: file to make; a name in `.safetensors` makes one of that format, any
            other needs PyTorch.
        backbone: official names, blocks unchunked.
        about: arguments of `ViT`.
    Raises: ValueError if PyTorch is needed and missing, or timm has no such model.
    """
    tensors = timm.from_official(backbone)
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors, about)
        return
    torch = _torch()
    state = {name: _tensor(torch, value) for name, value in tensors.items()}
    torch.save(state, path)
    sidecar.write(path, about)


def _torch():
    """The torch package.

    Raises: ValueError that names the extra.
    """
    try:
        import torch
    except ImportError as error:
        raise errors.InputError(
            "A .pth file is written by PyTorch, which is not installed; "
            "pip install 'dinov2_jax[torch]', or choose a .safetensors file."
        ) from error
    return torch


def _tensor(torch, value: np.ndarray):
    """A tensor with an array's bits, owned by PyTorch."""
    value = np.array(value)
    if value.dtype.name == "bfloat16":  # NumPy has no such type of its own
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)
