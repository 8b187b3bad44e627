"""A backbone under official names, out of what a file holds around it."""

import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import huggingface, infer, names, tables, timm

WHICH = ("teacher", "student")
HEADS = ("dino_head", "ibot_head")
FLOATS = {np.dtype(t) for t in ("f2", "f4", "f8", ml_dtypes.bfloat16)}

NEEDED = (
    "Give a DINOv2 backbone: an official .pth file, a .safetensors file, a Hugging Face "
    "folder, a timm file, or a training checkpoint of the reference"
)


def network(found: object, which: str) -> dict[str, np.ndarray]:
    """Flat tensors of one network, out of what training saves around it.

    An optimizer, schedule, iteration or config beside it is no weight, and left.

    Args:
        found: what a file holds.
        which: `teacher` or `student`, where it holds both.
    Raises: ValueError that says what it looks like.
    """
    given, found = found, found if isinstance(found, Mapping) else {}
    for key in ("model", "state_dict"):
        if isinstance(found.get(key), Mapping):
            return network(found[key], which)
    both = [key for key in WHICH if isinstance(found.get(key), Mapping)]
    if both:
        _require(which, both)
        return network(found[which], which)
    others = [n for n, value in found.items() if not isinstance(value, np.ndarray)]
    if others or not found:
        kind = infer.looks(str(name) for name in found)
        raise errors.InputError(
            f"It looks like {kind or 'no weights'}: a {type(given).__name__} with "
            f"{tables.some([str(n) for n in others])} beside tensors. {NEEDED}."
        )
    tensors = _unwrapped(found)
    _refuse_other(tensors)
    return _one_of_two(tensors, which)


def _refuse_other(tensors: Mapping) -> None:
    """Raises ValueError if the names are of something else that is known."""
    kind = infer.looks(tensors)
    if kind:
        raise errors.InputError(f"It looks like {kind}, no DINOv2 backbone. {NEEDED}.")


def _require(which: str, both: list[str]) -> None:
    """Raises ValueError if a training checkpoint has no such network."""
    if which not in both:
        raise errors.InputError(
            f"It holds only a {both[0]}; ask for which={both[0]!r}."
        )


def _unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without what DDP, FSDP and torch.compile put into them."""
    wrap = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module)\.")
    found = {wrap.sub("", str(name)): value for name, value in tensors.items()}
    if len(found) != len(tensors):
        raise errors.InputError("Some tensors are there twice, once inside a wrapper.")
    return found


def _one_of_two(tensors: dict[str, np.ndarray], which: str) -> dict[str, np.ndarray]:
    """The teacher's or student's part of a whole training model; another as it is."""
    both = [key for key in WHICH if any(n.startswith(f"{key}.") for n in tensors)]
    if not both:
        return tensors
    _require(which, both)
    # Beside the two networks the reference's model has the centers of its losses.
    rest = [n for n in tensors if not re.match(r"(teacher|student|\w+_loss)\.", n)]
    if rest:
        raise errors.InputError(
            f"Beside student and teacher it has {tables.some(rest)}."
        )
    start = f"{which}."
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}


def official(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]], str]:
    """The backbone of a network under official names, its heads, and the format.

    Args:
        tensors: of `network`.
    Returns: official state dict, unchunked; heads by name, or {}; one of official,
        training, huggingface, timm.
    Raises: ValueError that says what else it looks like.
    """
    trained = any(name.startswith("backbone.") for name in tensors)
    backbone, heads = _parted(tensors) if trained else (tensors, {})
    _refuse_other(backbone)
    if huggingface.recognises(backbone):
        found, label = huggingface.to_official(backbone), "huggingface"
    elif timm.recognises(backbone):
        found, label = timm.to_official(backbone), "timm"
    elif "mask_token" in backbone and "cls_token" in backbone:
        found, label = names.unchunked(backbone), "training" if trained else "official"
    else:
        raise errors.InputError(
            f"It holds {len(backbone)} tensors of no format that is known, the first "
            f"being {tables.some(backbone, 3)}. {NEEDED}."
        )
    for name, value in found.items():
        if np.asarray(value).dtype not in FLOATS:
            raise errors.InputError(
                f"{name} is of type {np.asarray(value).dtype}; weights need float16, "
                "bfloat16, float32 or float64. Give a file that is not quantised."
            )
    return found, heads, label


def _parted(tensors: Mapping) -> tuple[dict, dict[str, dict]]:
    """Backbone, and heads by name, of a network's tensors."""
    parts = {part: {} for part in ("backbone", *HEADS)}
    rest = {}
    for name, value in tensors.items():
        part, _, inner = name.partition(".")
        if part in parts:
            parts[part][inner] = value
        else:
            rest[name] = value
    backbone = parts.pop("backbone")
    if rest and not infer.looks(backbone):  # what that is says more than its head
        raise errors.InputError(
            f"Beside a backbone it has {tables.some(rest)}, which is no DINO head."
            f" {NEEDED}."
        )
    return backbone, {name: part for name, part in parts.items() if part}
