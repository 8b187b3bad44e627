"""The eight released backbones, and weights of any source as a module with parameters."""

import dataclasses
import difflib
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import checkpoint, download, errors
from dinov2_jax.convert import adapt, infer, names, probes, read
from dinov2_jax.models import vit

URL = "https://dl.fbaipublicfiles.com/dinov2"

PARTS = {"teacher": "teacher", "student": "params"}
"""Name of a network -> its name in a checkpoint of ours."""


@dataclasses.dataclass(frozen=True)
class Released:
    """A released backbone; all have patches of 14 and a position grid of 37."""

    size: str  # letter of vit.VARIANTS
    registers: int  # 0 or 4

    @property
    def url(self) -> str:
        """Address of its file."""
        stem = f"dinov2_vit{self.size.lower()}14"
        kind = f"_reg{self.registers}" if self.registers else ""
        return f"{URL}/{stem}/{stem}{kind}_pretrain.pth"

    def about(self) -> dict:
        """Its arguments of `ViT`.

        Source: the reference's `hubconf.py`.
        """
        found = vit.variant(f"{self.size}/14") | {
            "image_size": 518,
            "registers": self.registers,
            "layerscale": 1.0,
        }
        return {"ffn": "mlp"} | found | infer.resize(self.registers)


RELEASED = {
    f"dinov2_vit{size.lower()}14{'_reg' if registers else ''}": Released(
        size, registers
    )
    for registers in (0, 4)
    for size in ("S", "B", "L", "g")
}
"""Official name -> what it is."""


def _head_urls() -> dict[str, str]:
    """Name of a released head -> address of its file."""
    kinds = ["linear", "linear4"]
    dense = [f"{data}_{k}" for data in ("nyu", "kitti") for k in ("linear", "linear4")]
    dense += ["nyu_dpt", "kitti_dpt"]
    dense += [f"{data}_{k}" for data in ("ade20k", "voc2012") for k in ("linear", "ms")]
    found = {}
    for name, released in RELEASED.items():
        # The model cards list the others for backbones without registers only.
        for kind in kinds if released.registers else kinds + dense:
            url = released.url.replace("_pretrain", f"_{kind}_head")
            found[f"{name}_{kind}"] = url
    return found


HEADS = _head_urls()
"""Name of a released head, such as dinov2_vits14_nyu_linear4 -> its address."""


RANGES = {"nyu": 10.0, "kitti": 80.0}
"""Data set in a released depth head's name -> metres of its last bin."""


def _head_file(source: str | os.PathLike) -> tuple[pathlib.Path, object, dict]:
    """The path of a head, its tensors, and what its file or its release tells of it."""
    path = pathlib.Path(source).expanduser()
    if str(source) in HEADS:
        path = download.fetch(HEADS[str(source)])
    elif not path.is_file():
        near = difflib.get_close_matches(str(source), HEADS, 1, 0.6)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise errors.InputError(f"{source} is no file and no released head{hint}")
    tensors, note = read.tensors(path)
    # A file of a release keeps its name when it is downloaded by hand.
    names = {url.rpartition("/")[2]: name for name, url in HEADS.items()}
    release = str(source) if str(source) in HEADS else names.get(path.name, "")
    for data, metres in RANGES.items():
        if f"_{data}_" in release and not note:
            note = {"min_depth": 1e-3, "max_depth": metres}
    for key in ("min_depth", "max_depth", "upsample"):
        value = note.get(key, 1)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise errors.InputError(
                f"{path} tells {key}={value!r}, which is no number above 0."
            )
    return path, tensors, note


def head_note(source: str | os.PathLike) -> dict:
    """What a head's file or the name of its release tells besides the tensors.

    Returns: of a depth head min_depth and max_depth in metres, and how it was trained;
        empty where nothing is told.
    Raises: ValueError if it is no such name or file.
    """
    return _head_file(source)[2]


def load_head(
    source: str | os.PathLike,
    max_depth: float | None = None,
    min_depth: float | None = None,
) -> tuple[nn.Module, dict]:
    """A released or trained head, for `module.apply(variables, ...)`.

    Args:
        source: a name of HEADS, whose file is downloaded once, or the path of a .pth or
            .safetensors file, told apart by what it holds.
        max_depth, min_depth: metres of the last and the first bin of a linear depth
            head. None takes what its file tells, or the name of its release; for files
            that tell nothing, it is guessed by the name, and said.
    Returns: module and variables, see `convert.probes.read_head`.
    Raises: ValueError if it is no such name or file, the head is not whole, or its file
        tells another range.
    """
    path, tensors, note = _head_file(source)
    ends = {"max_depth": max_depth, "min_depth": min_depth}
    for key, metres in ends.items():
        told = note.get(key)
        if metres is not None and told is not None and metres != told:
            raise errors.InputError(
                f"{path} is a head of {key}={told:g} m, not {metres:g} m; leave {key} "
                "out, or set what it was trained with."
            )
        ends[key] = told if metres is None else metres
    guessed = ends["max_depth"] is None
    if guessed:
        near = [m for data, m in RANGES.items() if data in path.name.lower()]
        ends["max_depth"] = near[0] if len(near) == 1 else RANGES["nyu"]
    ends["min_depth"] = 1e-3 if ends["min_depth"] is None else ends["min_depth"]
    try:
        head, variables = probes.read_head(
            tensors, **ends, upsample=note.get("upsample", 4)
        )
    except ValueError as error:
        raise errors.InputError(f"{path}: {error}") from error
    if guessed and hasattr(head, "max_depth"):
        print(
            f"{path} does not tell the range of its depths: {ends['max_depth']:g} m is a "
            "guess; give max_depth",
            file=sys.stderr,
        )
    return head, variables


def module(about: Mapping, **overrides) -> vit.ViT:
    """The ViT of such arguments; other keys of `about` are not for it.

    Raises: ValueError if the number of attention heads is not told.
    """
    fields = {field.name for field in dataclasses.fields(vit.ViT)}
    given = {key: value for key, value in about.items() if key in fields} | overrides
    if "heads" not in given:
        raise errors.InputError(
            f"These weights do not tell their number of attention heads, and width "
            f"{given['width']} is no multiple of {infer.HEAD_WIDTH}; give a folder or "
            "file with a config that does."
        )
    return vit.ViT(**given)


def shapes(built: vit.ViT) -> dict:
    """Shapes of a module's parameters; nothing is computed."""
    images = jax.ShapeDtypeStruct(_patch(built), jnp.float32)
    return jax.eval_shape(built.init, jax.random.key(0), images)["params"]


def _patch(built: vit.ViT) -> tuple[int, ...]:
    """Shape of the smallest image."""
    return (1, built.patch_size, built.patch_size, built.in_channels)


def read_any(source: str | os.PathLike, which: str = "teacher") -> read.Weights:
    """The weights that a name or a path stands for.

    Args:
        source: an official name, whose file is downloaded once; or the path of a file
            or folder of any format, or of a workdir of a run.
        which: `teacher` or `student`, of a run or a training checkpoint.
    Raises: ValueError that says what it looks like and what is needed.
    """
    if str(source) in RELEASED:
        return read.read_weights(download.fetch(RELEASED[str(source)].url), which)
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        near = difflib.get_close_matches(str(source), RELEASED, 1, 0.8)
        hint = f"; did you mean {near[0]}?" if near else " such as dinov2_vits14_reg."
        raise errors.InputError(
            f"{source} is no official name and no path; give a workdir, a .pth or "
            f".safetensors file, a Hugging Face folder, or a name{hint}"
        )
    if is_run(path):
        return _of_run(path, which)
    return read.read_weights(path, which)


def is_run(path: pathlib.Path) -> bool:
    """Whether a folder is a workdir of a run with a checkpoint of it."""
    return any(p.name.isdigit() for p in (path / "checkpoints").glob("*"))


def _of_run(folder: pathlib.Path, which: str) -> read.Weights:
    """The newest checkpoint's teacher or student, with what the config tells."""
    if which not in PARTS:
        raise errors.InputError(f"which={which!r}; choose one of {', '.join(PARTS)}.")
    config = folder / "config.json"
    try:
        model = json.loads(config.read_text(encoding="utf-8"))["model"]
        size = vit.variant(model["variant"])
        told = {
            "heads": model["heads"] or size["heads"],
            "antialias": model["antialias"],
            "offset": model["offset"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            f"{config} tells the patch size and heads of this run, but cannot be read "
            f"({error!r}); restore it."
        ) from error
    params = checkpoint.load_params(folder / "checkpoints", PARTS[which])
    params = jax.device_get(params)
    backbone = names.backbone_to_official(params.pop("backbone"), size["patch_size"])
    heads = {name: names.head_to_official(part) for name, part in params.items()}
    about = infer.named(infer.architecture(backbone) | told)
    return read.Weights(backbone, heads, about, "workdir")


def load_backbone(
    name: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    *,
    image_size: int | None = None,
    patch_size: int | None = None,
    in_channels: int | None = None,
    which: str = "teacher",
    partial: bool = False,
) -> tuple[vit.ViT, dict]:
    """A backbone with its weights, for `module.apply({"params": params}, images)`.

    Loading is strict; a line on standard error tells how many tensors matched.

    Args:
        name: an official name, which the weights must fit; None takes the architecture
            from the weights. Without `weights` a path is taken too.
        weights: what `read_any` reads; None downloads the official file of `name`.
        image_size: pixels, side of the square position table, which is resized once;
            None keeps the file's grid. The module takes images of any size anyway.
        patch_size: pixels; None keeps the name's, or the file's (`adapt.patch`).
        in_channels: channels of images; None keeps the file's (`adapt.channels`).
        which: `teacher` or `student`, of a run or a training checkpoint.
        partial: load although tensors are missing, unexpected or mis-shaped: these are
            listed, and what the file does not give is initialised as for training,
            from seed 0.
    Returns: the module, which resizes positions as released or as its file tells, and
        float32 parameters.
    Raises: ValueError that lists what does not fit, or says what the file is.
    """
    if name is not None and str(name) not in RELEASED and weights is None:
        name, weights = None, name
    if name is None and weights is None:
        raise errors.InputError(
            f"Give a name, one of {', '.join(RELEASED)}, or weights."
        )
    if name is not None and str(name) not in RELEASED:
        raise errors.InputError(
            f"{name!r} is no official name; choose one of {', '.join(RELEASED)}, or None "
            "to take the architecture from the weights."
        )
    source = name if weights is None else weights
    found = read_any(source, which)
    state, about, changes = _adapted(found, name, image_size, patch_size, in_channels)
    built = module(about)
    params, match = _filled(built, state, partial, source)
    label = name or about.get("variant", f"width {about['width']}")
    changed = "".join(f", {change}" for change in changes)
    print(
        f"{label}: {match.matched}/{match.total} tensors of {source} ({found.format})"
        f"{changed}",
        file=sys.stderr,
    )
    return built, params


def _adapted(
    found: read.Weights,
    name: str | None,
    image_size: int | None,
    patch_size: int | None,
    in_channels: int | None,
) -> tuple[dict, dict, list[str]]:
    """State dict and arguments of `ViT` as asked for, and what was changed."""
    told = found.about
    about = dict(told) if name is None else RELEASED[name].about() | {"in_channels": 3}
    heads = {told.get("heads"), about.get("heads"), None}
    if told["width"] == about["width"] and len(heads) > 2:
        raise errors.InputError(
            f"These weights have {told['heads']} attention heads, {name} has "
            f"{about['heads']}; leave the name out to take the weights' architecture."
        )
    if told["registers"] == about["registers"]:
        about |= {key: told[key] for key in ("antialias", "offset")}
    state, changes, patch = found.backbone, [], patch_size or about["patch_size"]
    sizes = {"patch_size": patch_size, "in_channels": in_channels}
    for key, size in sizes.items():
        if size is not None and size < 1:
            raise errors.InputError(f"{key}={size}; give 1 or more.")
    side = told["grid"] if image_size is None else image_size // patch
    if side < 1 or side * patch != (image_size or side * patch):
        raise errors.InputError(
            f"image_size={image_size} is no multiple of the patch size {patch}; give "
            f"{max(side, 1) * patch} or {(max(side, 1) + 1) * patch}."
        )
    if patch_size not in (None, told["patch_size"]):
        state = adapt.patch(state, patch_size)
        changes.append(f"patches {told['patch_size']} -> {patch_size}")
    if in_channels not in (None, told["in_channels"]):
        state = adapt.channels(state, in_channels)
        changes.append(f"channels {told['in_channels']} -> {in_channels}")
    if side != told["grid"]:
        state = adapt.grid(state, side, about["antialias"], about["offset"])
        changes.append(f"position grid {told['grid']} -> {side}")
    asked = {key: size for key, size in sizes.items() if size is not None}
    return state, about | asked | {"image_size": side * patch, "grid": side}, changes


def _filled(
    built: vit.ViT, state: Mapping[str, np.ndarray], partial: bool, source: object
) -> tuple[dict, names.Match]:
    """float32 parameters of a module, and how the state dict fits it."""
    template = shapes(built)
    match = names.match_backbone(state, template)
    if not match.whole:
        if not partial or not match.matched:
            raise errors.InputError(
                f"{source} is of another architecture: {match}. Choose the name, "
                "patch_size and in_channels that it was trained with, or leave the name "
                "out; partial=True loads what fits."
            )
        for kind in ("missing", "unexpected", "misshaped"):
            listed = getattr(match, kind)
            print(f"{kind} {len(listed)}: {', '.join(listed)}", file=sys.stderr)
        print("What is missing or misshaped is initialised anew.", file=sys.stderr)
        images = jnp.zeros(_patch(built))
        template = jax.jit(built.init)(jax.random.key(0), images)["params"]
    params = names.fill_backbone(state, template, match)
    # A copy: what lies in the file must not change with the file.
    params = jax.tree.map(lambda a: jnp.array(np.asarray(a, np.float32)), params)
    return params, match
