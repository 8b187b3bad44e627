"""Official names and settings against those of Hugging Face `transformers`.

`Dinov2Model` and `Dinov2WithRegistersModel` keep query, key and value apart, and name
everything else anew. Files on the hub, and those written here, use the names that
`transformers` 4 gave them (`attention.attention.query`, `mlp.weights_in`); version 5
reads them, and its own (`attention.q_proj`, `mlp.gate_proj`) are read here too.
"""

import re
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import infer, tables

OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
"""Official name, without weight or bias -> theirs."""

BLOCK = {
    "attn.qkv": tuple(f"attention.attention.{n}" for n in ("query", "key", "value")),
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
"""The same inside a block, where names differ; norms, fc1 and fc2 are called alike."""

NEWER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.down_proj": "mlp.weights_out",
}
"""Names of version 5 -> those of version 4; `gate_proj` and `up_proj` are joined."""

KINDS = ("dinov2", "dinov2_with_registers")
"""The `model_type` of a DINOv2 backbone."""

PIXELS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

_INDEX = r"encoder\.layer\.(\d+)\."


def _split_end(name: str) -> tuple[str, str]:
    """`attn.qkv`, `.weight` of `attn.qkv.weight`; a name of no such end is whole."""
    head, _, end = name.rpartition(".")
    return (head, f".{end}") if end in ("weight", "bias") else (name, "")


def names(official: str) -> tuple[str, ...]:
    """Their names for an official one; three for query, key and value, else one."""
    head, end = _split_end(official)
    block = re.match(r"blocks\.(\d+)\.(.*)", head)
    if block is None:
        return (OUTSIDE[head] + end,)
    theirs = BLOCK.get(block[2], block[2])
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    return tuple(f"encoder.layer.{block[1]}.{name}{end}" for name in theirs)


def recognises(tensors: Mapping) -> bool:
    """Whether these are the names of a `Dinov2Model` or its kin with registers."""
    return "embeddings.cls_token" in tensors and any(
        name.startswith("encoder.layer.") for name in tensors
    )


def from_official(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of `model.safetensors` from an official state dict.

    Args:
        tensors: official names, blocks unchunked.
    Returns: their names; each official tensor is used once.
    Raises: ValueError that lists names if the architecture is none that they have.
    """
    expected = tables.complete(tensors)
    tables.check(tensors, expected, "Hugging Face compatible official")
    found = {}
    for name in expected:
        theirs, value = names(name), np.asarray(tensors[name])
        if value.shape[0] % len(theirs):
            raise errors.InputError(
                f"{name} of shape {value.shape} does not split in three."
            )
        parts = np.split(value, len(theirs)) if len(theirs) > 1 else [value]
        found |= {n: np.ascontiguousarray(part) for n, part in zip(theirs, parts)}
    return found


def to_official(
    tensors: Mapping[str, np.ndarray], partial: bool = False
) -> dict[str, np.ndarray]:
    """Official state dict from the tensors of a Hugging Face folder.

    Args:
        tensors: their names, of version 4 or 5.
        partial: take what there is, and keep what is unexpected under its own name.
    Returns: official names, blocks unchunked; each tensor is used once. A mask token
        may be missing (`use_mask_token=False`).
    Raises: ValueError that lists missing and unexpected names.
    """
    tensors = _older(tensors)
    first = "encoder.layer.0."
    official = tables.official(
        tables.depth(tensors, _INDEX),
        "swiglu" if f"{first}mlp.weights_in.weight" in tensors else "mlp",
        "embeddings.register_tokens" in tensors,
        ()
        if f"{first}attention.attention.query.bias" in tensors
        else ("attn.qkv.bias",),
    )
    table = {name: names(name) for name in official}
    if OUTSIDE["mask_token"] not in tensors:
        del table["mask_token"]
    expected = {n for theirs in table.values() for n in theirs}
    if not partial:
        tables.check(tensors, expected, "Hugging Face")
    found = {
        name: _joined([tensors[n] for n in theirs], name)
        for name, theirs in table.items()
        if set(theirs) <= set(tensors)
    }
    return found | {n: tensors[n] for n in sorted(set(tensors) - expected)}


def _joined(parts: list[np.ndarray], name: str) -> np.ndarray:
    """One tensor of several along the first axis; one alone is itself."""
    if len({part.shape for part in parts}) > 1:
        raise errors.InputError(
            f"Parts of {name} have shapes {[p.shape for p in parts]}."
        )
    return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)


def _older(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the names of version 4."""
    found = {}
    for name, value in tensors.items():
        if "mlp.up_proj." in name and name.replace("up_proj", "gate_proj") in tensors:
            continue  # joined below, with its gate
        twin = name.replace("gate_proj", "up_proj")
        if "mlp.gate_proj." in name and twin in tensors:
            name = name.replace("gate_proj", "weights_in")
            value = _joined([value, tensors[twin]], name)
        for new, old in NEWER.items():
            name = name.replace(f".{new}.", f".{old}.")
        if name in found:
            raise errors.InputError(
                f"{name} is there twice, under an older and a newer name."
            )
        found[name] = value
    return found


def resize(registers: int) -> dict:
    """How `transformers` resizes positions, as arguments of `ViT`.

    Without registers it leaves out the official offset of 0.1, so that its features
    differ from the official ones on every grid but the table's own.
    """
    return {"antialias": registers > 0, "offset": 0.0}


def config(about: Mapping) -> dict:
    """Contents of `config.json`.

    Args:
        about: arguments of `ViT`: width, depth, heads; patch_size, image_size,
            in_channels, registers, ffn, mlp_ratio and qkv_bias, where they are not
            the defaults of `ViT`.
    Raises: ValueError if `transformers` has no such model.
    """
    ratio = about.get("mlp_ratio", 4.0)
    if ratio != int(ratio):
        raise errors.InputError(
            f"mlp_ratio={ratio}; transformers takes whole numbers, so this model has "
            "no Hugging Face form."
        )
    registers = about.get("registers", 0)
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    found = {
        "architectures": [f"{kind}Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": about["width"],
        "num_hidden_layers": about["depth"],
        "num_attention_heads": about["heads"],
        "mlp_ratio": int(ratio),
        "use_swiglu_ffn": about.get("ffn", "mlp") == "swiglu",
        "image_size": about.get("image_size", 518),
        "patch_size": about.get("patch_size", 14),
        "num_channels": about.get("in_channels", 3),
        "qkv_bias": about.get("qkv_bias", True),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    return found | ({"num_register_tokens": registers} if registers else {})


def about(config: Mapping) -> dict:
    """Arguments of `ViT` from a `config.json`; the inverse of `config`.

    Returns: width, depth, heads, patch_size, image_size, in_channels, registers, ffn,
        mlp_ratio, qkv_bias, and the official antialias and offset of such a model. Of
        a model with a backbone in it (DPT, Depth Anything) it is the backbone's.
    Raises: ValueError if it is no DINOv2 model's, lacks a size, or asks for what the
        official models do not have.
    """
    inner = [part for part in config.values() if isinstance(part, Mapping)]
    parts = [part for part in (config, *inner) if part.get("model_type") in KINDS]
    if not parts:
        raise errors.InputError(
            f"config.json has model_type {config.get('model_type')!r}; it needs "
            f"{' or '.join(KINDS)}, of the model or of a backbone in it."
        )
    config = parts[0]
    sizes = {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "image_size": "image_size",
        "patch_size": "patch_size",
    }
    wrong = [key for key in sizes.values() if not _whole(key, config.get(key))]
    if config.get("hidden_act", "gelu") != "gelu":
        wrong.append("hidden_act")
    if config.get("layer_norm_eps", 1e-6) != 1e-6:
        wrong.append("layer_norm_eps")
    if wrong:
        raise errors.InputError(
            "config.json needs one whole number for each size, GELU and a norm of "
            f"1e-6; it has { ({key: config.get(key) for key in wrong}) }."
        )
    registers = 0
    if config["model_type"] == "dinov2_with_registers":
        registers = config.get("num_register_tokens", 4)
    found = {ours: config[theirs] for ours, theirs in sizes.items()}
    return (
        found
        | {
            "in_channels": config.get("num_channels", 3),
            "registers": registers,
            "ffn": "swiglu" if config.get("use_swiglu_ffn") else "mlp",
            "mlp_ratio": float(config.get("mlp_ratio", 4)),
            "qkv_bias": config.get("qkv_bias", True),
        }
        | infer.resize(registers)
    )


def _whole(key: str, value: object) -> bool:
    """Whether a size is a whole number, or for images two."""
    if key == "image_size" and isinstance(value, list | tuple) and len(value) == 2:
        return all(isinstance(part, int) for part in value)
    return isinstance(value, int)


def processor(about: Mapping) -> dict | None:
    """Contents of `preprocessor_config.json`: the official evaluation transform.

    The short side to 8/7 of the crop by bicubic interpolation, the central crop, [0, 1],
    and ImageNet's mean and standard deviation.

    Args:
        about: arguments of `ViT`: in_channels and image_size, the crop, at which
            positions are those of the table and `transformers` resizes nothing.
    Returns: None where mean and standard deviation are not known: not for 3 channels.
    """
    if about.get("in_channels", 3) != 3:
        return None
    side = about.get("image_size", 518)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(side * 8 / 7)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": PIXELS["mean"],
        "image_std": PIXELS["std"],
    }
