"""Weights from files of any format, which is told from what they hold; nothing in them
is run. A file's name and ending say nothing here.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import (
    adapt,
    finite,
    huggingface,
    infer,
    lookalikes,
    mapped,
    pth,
    sidecar,
    sift,
    tables,
    timm,
    translate,
)

WHICH = sift.WHICH
"""The networks of a training checkpoint."""

TOLD = ("heads", "antialias", "offset")
"""What a config says of a model that its tensors do not."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights of a folder, whole or with `.index.json` behind the name of several."""

SIZES = ("width", "depth", "patch_size", "in_channels", "registers", "ffn")
"""What both say, and must agree on."""

BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"{": "a JSON file, such as a config or an index of shards; give its folder",
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
    lines: tuple[str, ...] = ()  # what was chosen, left out or put in its place
    guess: str = ""  # a line if the number of heads is one


def read_weights(
    path: pathlib.Path,
    which: str = "teacher",
    *,
    prefix: str | None = None,
    heads: int | None = None,
    partial: bool = False,
    image_size: adapt.Size | None = None,
) -> Weights:
    """The weights in a file, or in a folder of `transformers` or timm.

    Args:
        path: file or folder.
        which: `teacher` or `student`, where a file holds both; see `sift.network`.
        prefix: of the backbone's names; None if there is one backbone alone.
        heads: number of attention heads; None for what the file tells, or else a guess
            from a released width.
        partial: take what there is of a backbone.
        image_size: pixels of the position table, where it is not square and the file
            does not tell.
    Raises: ValueError that says what the file looks like and what is needed, or which
        tensors hold NaN or infinity.
    """
    path = pathlib.Path(path)
    if which not in WHICH:
        raise errors.InputError(f"which={which!r}; choose one of {', '.join(WHICH)}.")
    if path.is_dir():
        found, told = _folder(path)
    elif path.exists():
        _require_whole(path)
        found, told = tensors(path)
    else:
        raise errors.InputError(f"{path} is no file or folder. {sift.NEEDED}.")
    try:
        network, lines = sift.network(found, which, prefix)
        sizes = told.get("image_size"), image_size
        named = translate.official(network, partial, sizes, "width" in told)
        shown = infer.architecture(named.backbone, *sizes)
        about = _joined(shown, told)
        about, guess = with_heads(about, told.get("heads"), heads)
        require_finite(named.backbone, named.heads)
    except ValueError as error:
        raise errors.InputError(f"{path}: {error}") from error
    kind = named.format
    if kind == "official" and _is_safetensors(path):
        kind = "safetensors"
    lines = (*lines, *named.lines)
    return Weights(named.backbone, named.heads, about, kind, lines, guess)


def with_heads(about: dict, told: int | None, heads: int | None) -> tuple[dict, str]:
    """Arguments of `ViT` with the number of heads, and a line if that is a guess.

    Args:
        about: arguments, with the guess if there is one.
        told: what the file tells.
        heads: what the caller tells.
    Raises: ValueError if both tell, and differ, or it does not divide the width.
    """
    if heads is None:
        if told is not None or "heads" not in about:
            return about, ""
        return about, (
            f"{about['heads']} attention heads are a guess from width "
            f"{about['width']}, as the file does not tell; heads= (--num-heads) does"
        )
    if told not in (None, heads):
        raise errors.InputError(
            f"heads={heads}, but its own description says {told}; leave heads out."
        )
    if heads < 1 or about["width"] % heads:
        raise errors.InputError(
            f"heads={heads} does not divide the width of {about['width']}."
        )
    return infer.named(about | {"heads": heads}), ""


def require_finite(backbone: Mapping, heads: Mapping[str, Mapping]) -> None:
    """Raises ValueError that names tensors which hold NaN or infinity."""
    parts = {f"{k}.{n}": v for k, part in heads.items() for n, v in part.items()}
    finite.require(dict(backbone) | parts)


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
    return pth.read_pth(path), sidecar.read(path)


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
    for name in FILES:
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
        library = huggingface if "model_type" in dict(told) else timm
        told = library.about(told)
    except (ValueError, TypeError) as error:
        kind = lookalikes.anything(found) if isinstance(found, Mapping) else None
        looks = f"{path} looks like {kind}, not a DINOv2 backbone: " if kind else ""
        raise errors.InputError(f"{looks}{config} cannot be used: {error}") from error
    return found, told | {key: note[key] for key in TOLD if key in note}


def _require_whole(path: pathlib.Path) -> None:
    """Raises ValueError if a file holds a part of a model, as an index beside it says."""
    indices = [path.with_name(f"{name}.index.json") for name in FILES]
    text = f'"{path.name}"'
    if any(i.is_file() and text in i.read_text(encoding="utf-8") for i in indices):
        raise errors.InputError(
            f"{path} is one of several files that hold a model together; give its folder."
        )


def _shards(path: pathlib.Path) -> dict:
    """Tensors of the files that a folder's index lists."""
    indices = [path / f"{name}.index.json" for name in FILES]
    index = next((index for index in indices if index.is_file()), None)
    if index is None:
        raise errors.InputError(
            f"{path} holds no checkpoint of a run, no {', no '.join(FILES)} or index of "
            f"one. {sift.NEEDED}."
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
        part = tensors(path / name)[0]
        if not isinstance(part, Mapping):
            raise errors.InputError(f"{path / name} holds no tensors by name.")
        found |= part
    lost = set(places) - set(found)
    if lost:
        raise errors.InputError(
            f"{path}: its shards lack {tables.some(lost)}, which {index.name} lists; "
            "download the folder again."
        )
    return found
