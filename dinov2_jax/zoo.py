"""Weights of any source as a module with parameters, and released heads."""

import dataclasses
import difflib
import json
import os
import pathlib
import sys
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import download, errors, headfile, released, runs
from dinov2_jax.convert import adapt, infer, names, probes, read, tables
from dinov2_jax.models import vit

RELEASED, HEADS = released.RELEASED, released.HEADS
"""Names of released backbones and heads, see `released`."""


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
    Returns: module and variables, see `convert.probes.read_head`. A backbone beside the
        head, as in a whole depther's checkpoint, is left with a line on standard error.
    Raises: ValueError if it is no such name or file, the head is not whole or holds NaN
        or infinity, or its file tells another range.
    """
    path, tensors, note = headfile.read(source)
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
        near = [m for data, m in headfile.RANGES.items() if data in path.name.lower()]
        ends["max_depth"] = near[0] if len(near) == 1 else headfile.RANGES["nyu"]
    ends["min_depth"] = 1e-3 if ends["min_depth"] is None else ends["min_depth"]
    try:
        _, beside = probes.parted(tensors)
        if beside:
            print(
                f"{path}: took the head, and left {len(beside)} tensors beside it "
                f"({tables.some(beside, 2)})",
                file=sys.stderr,
            )
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
            f"{given['width']} is of no released model; give heads= (--num-heads), or a "
            "file or folder with a description that tells."
        )
    return vit.ViT(**given)


def _patch(built: vit.ViT) -> tuple[int, ...]:
    """Shape of the smallest image."""
    return (1, built.patch_size, built.patch_size, built.in_channels)


def read_any(
    source: str | os.PathLike,
    which: str = "teacher",
    *,
    prefix: str | None = None,
    heads: int | None = None,
    partial: bool = False,
    image_size: adapt.Size | None = None,
) -> read.Weights:
    """The weights that a name or a path stands for.

    Args:
        source: an official name, whose file is downloaded once; or the path of a file
            or folder of any format; or a run's checkpoint, see `runs.place`.
        which, prefix, heads, partial: see `load_backbone`.
        image_size: pixels of the file's own position table, (rows, columns), where it
            is not square and the file does not tell.
    Returns: the weights; `tell` prints what they leave to be said.
    Raises: ValueError that says what it looks like and what is needed.
    """
    told = {"prefix": prefix, "heads": heads, "partial": partial}
    told["image_size"] = image_size
    if str(source) in RELEASED:
        name = str(source)
        if heads is None:
            told["heads"] = RELEASED[name].about()["heads"]
        return read.read_weights(download.fetch(RELEASED[name].url), which, **told)
    path = pathlib.Path(source).expanduser()
    run = runs.place(path)
    if run is None and not path.exists():
        near = difflib.get_close_matches(str(source), RELEASED, 1, 0.8)
        hint = f"; did you mean {near[0]}?" if near else " such as dinov2_vits14_reg."
        raise errors.InputError(
            f"{source} is no official name and no path; give a workdir, a .pth or "
            f".safetensors file, a Hugging Face folder, or a name{hint}"
        )
    with errors.at(path):
        if run is None:
            return read.read_weights(path, which, **told)
    if prefix is not None:
        raise errors.InputError(
            f"prefix={prefix!r} is for files; a run has which= teacher or student."
        )
    return _of_run(run, which, heads)


def tell(found: read.Weights, source: object, guess: bool = True) -> None:
    """Print what was chosen and left out of a file, and what is a guess.

    Args:
        found: the weights.
        source: what they were read from.
        guess: whether a guessed number of heads is used.
    """
    for line in (*found.lines, *([found.guess] if guess and found.guess else ())):
        print(f"{source}: {line}", file=sys.stderr)


def _of_run(run: runs.Place, which: str, asked: int | None) -> read.Weights:
    """A checkpoint's teacher or student, with what the config tells."""
    if which not in runs.PARTS:
        raise errors.InputError(
            f"which={which!r}; choose one of {', '.join(runs.PARTS)}."
        )
    folder = run.folder
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
    params, lines = runs.load(run, which)
    params = jax.device_get(params)
    backbone = names.backbone_to_official(params.pop("backbone"), size["patch_size"])
    heads = {name: names.head_to_official(part) for name, part in params.items()}
    about = infer.named(infer.architecture(backbone) | told)
    try:
        about, _ = read.with_heads(about, told["heads"], asked)
        read.require_finite(backbone, heads)
    except ValueError as error:
        raise errors.InputError(f"{folder}: {error}") from error
    return read.Weights(backbone, heads, about, "workdir", lines)


def load_backbone(
    name: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    *,
    image_size: adapt.Size | None = None,
    patch_size: int | None = None,
    in_channels: int | None = None,
    which: str = "teacher",
    prefix: str | None = None,
    heads: int | None = None,
    partial: bool = False,
) -> tuple[vit.ViT, dict]:
    """A backbone with its weights, for `module.apply({"params": params}, images)`.

    Loading is strict; lines on standard error tell how many tensors matched, what was
    chosen, left out or guessed.

    Args:
        name: an official name, which the weights must fit; None takes the architecture
            from the weights. Without `weights` a path is taken too.
        weights: what `read_any` reads; None downloads the official file of `name`.
        image_size: pixels of the position table, its side or (rows, columns), to which
            it is resized once; None keeps the file's grid. The module takes images of
            any size anyway. A file with a table that is not square, and that does not
            tell of what grid, needs its (rows, columns).
        patch_size: pixels; None keeps the name's, or the file's (`adapt.patch`).
        in_channels: channels of images; None keeps the file's (`adapt.channels`).
        which: `teacher` or `student`, of a run or a file with both; an average of
            weights (`state_dict_ema`, `model_ema`) is a teacher.
        prefix: of the names of the backbone's tensors, such as `model.backbone`; None
            finds it.
        heads: number of attention heads, where the file does not tell; None takes it
            from the name, or guesses it from a released width, and says so.
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
    found = read_any(
        source,
        which,
        prefix=prefix,
        heads=heads,
        partial=partial,
        image_size=image_size,
    )
    tell(found, source, guess=name is None)
    state, about, changes = _adapted(found, name, image_size, patch_size, in_channels)
    built = module(about)
    params, match = filled(built, state, partial, source)
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
    image_size: adapt.Size | None,
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
    return adapt.sized(found.backbone, told, about, image_size, patch_size, in_channels)


def filled(
    built: vit.ViT, state: Mapping[str, np.ndarray], partial: bool, source: object
) -> tuple[dict, names.Match]:
    """float32 parameters of a module, and how the state dict fits it.

    Args:
        built: the module.
        state: official names, unchunked.
        partial: see `load_backbone`.
        source: what it was read from, for lines and errors.
    Raises: ValueError that lists what does not fit, unless partial and something does.
    """
    template = vit.shapes(built)
    match = names.match_backbone(state, template)
    if not match.whole:
        if not partial or not match.matched:
            raise errors.InputError(
                f"{source} is of another architecture: {match}. Choose the name, "
                "patch_size and in_channels that it was trained with, or leave the name "
                "out; partial=True (--partial) loads what fits."
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
