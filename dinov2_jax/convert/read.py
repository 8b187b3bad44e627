"""Weights from files of any format, which is told from what they hold; nothing in them
is run. A file's name and ending say nothing here.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import huggingface, infer, mapped, pth, sift, tables

WHICH = sift.WHICH
"""The networks of a training checkpoint."""

TOLD = ("heads", "antialias", "offset")
"""What a config says of a model that its tensors do not."""

SIZES = ("width", "depth", "patch_size", "in_channels", "registers", "ffn")
"""What both say, and must agree on."""

BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"<": "a web page, not the file that was to be downloaded",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x93NUMPY": "a NumPy array",
}
"""First bytes of files that are often taken for weights -> what they are."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A backbone under official names, and what came with it.

    `about` holds arguments of `ViT` (see `infer.architecture`); arrays keep the
    file's dtype and may lie in the file until they are used.
    """

    backbone: dict[str, np.ndarray]
    heads: dict[str, dict[str, np.ndarray]]  # dino_head[, ibot_head], or empty
    about: dict
    format: str  # official, safetensors, huggingface, timm, training or workdir


def read_weights(path: pathlib.Path, which: str = "teacher") -> Weights:
    """The weights in a file, or in a folder of `transformers` or timm.

    Args:
        path: file or folder.
        which: `teacher` or `student`, where a training checkpoint holds both.
    Raises: ValueError that says what the file looks like and what is needed.
    """
    path = pathlib.Path(path)
    if which not in WHICH:
        raise errors.InputError(f"which={which!r}; choose one of {', '.join(WHICH)}.")
    if path.is_dir():
        found, told = _folder(path)
    elif path.exists():
        found, told = tensors(path)
    else:
        raise errors.InputError(f"{path} is no file or folder. {sift.NEEDED}.")
    try:
        state, heads, kind = sift.official(sift.network(found, which))
        about = _joined(infer.architecture(state), told)
    except ValueError as error:
        raise errors.InputError(f"{path}: {error}") from error
    mapped_file = kind == "official" and _is_safetensors(path)
    return Weights(state, heads, about, "safetensors" if mapped_file else kind)


def _joined(shown: dict, told: Mapping) -> dict:
    """What the tensors show and a config tells, which must not disagree."""
    wrong = [k for k in SIZES if k in told and told[k] != shown[k]]
    if wrong:
        raise errors.InputError(
            "Its config and its tensors disagree: "
            + "; ".join(f"{k} {told[k]!r} against {shown[k]!r}" for k in wrong)
            + ". Take both from the same model."
        )
    told = {key: told[key] for key in TOLD if key in told}
    heads, offset = told.get("heads", 1), told.get("offset", 0.0)
    if type(heads) is not int or heads < 1 or shown["width"] % heads:
        raise errors.InputError(
            f"Its config has heads={heads!r} at width {shown['width']}."
        )
    if type(offset) not in (int, float) or not 0 <= offset < 1:
        raise errors.InputError(
            f"Its config has offset={offset!r}; it needs one in [0, 1)."
        )
    return infer.named(shown | told)


def tensors(path: pathlib.Path) -> tuple[object, dict]:
    """What a file holds, and what its own description tells."""
    if _is_safetensors(path):
        found, metadata = mapped.tensors(path)
        try:
            told = json.loads(metadata.get("dinov2_jax", "{}"))
            return found, dict(told)
        except (ValueError, TypeError) as error:
            raise errors.InputError(
                f"{path}: its note is no JSON object: {error}."
            ) from error
    with path.open("rb") as file:
        start = file.read(64)
    for beginning, kind in BEGINNINGS.items():
        if start.lstrip().startswith(beginning):
            raise errors.InputError(f"{path} looks like {kind}. {sift.NEEDED}.")
    return pth.read_pth(path), {}


def _is_safetensors(path: pathlib.Path) -> bool:
    """Whether a file begins with the length of a JSON header that fits in it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= path.stat().st_size - 8


def _folder(path: pathlib.Path) -> tuple[dict, dict]:
    """Tensors of a folder of `transformers` or timm, and what its config tells.

    A note in the file itself says more than a config of `transformers`, which has no
    place for how positions are resized.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            found, note = tensors(path / name)
            break
    else:
        found, note = _shards(path), {}
    config = path / "config.json"
    if not config.is_file():
        return found, note
    try:
        told = json.loads(config.read_text(encoding="utf-8"))
        told = huggingface.about(told) if "model_type" in dict(told) else {}
    except (ValueError, TypeError) as error:
        raise errors.InputError(f"{config} cannot be used: {error}") from error
    return found, told | {key: note[key] for key in TOLD if key in note}


def _shards(path: pathlib.Path) -> dict:
    """Tensors of the files that a folder's index lists."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        raise errors.InputError(
            f"{path} holds no checkpoint of a run, no model.safetensors and no "
            f"model.safetensors.index.json. {sift.NEEDED}, or a run's workdir."
        )
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise errors.InputError(f"{index} is damaged: {error!r}.") from error
    found = {}
    for name in sorted({str(place) for place in places.values()}):
        if pathlib.PurePath(name).name != name or "\\" in name:
            raise errors.InputError(
                f"{index} names {name!r}, which lies outside its folder."
            )
        if not (path / name).is_file():
            raise errors.InputError(
                f"{path / name} is missing, which {index.name} lists."
            )
        found |= mapped.tensors(path / name)[0]
    lost = set(places) - set(found)
    if lost:
        raise errors.InputError(
            f"{path}: its shards lack {tables.some(lost)}, which {index.name} lists; "
            "download the folder again."
        )
    return found
