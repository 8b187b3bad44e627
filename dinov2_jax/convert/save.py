"""A backbone of ours as a file or folder of any format, whole or not at all."""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, tree
from dinov2_jax.convert import (
    adapt,
    check,
    export,
    finite,
    names,
    onnx,
    sidecar,
    stablehlo,
    timm,
)
from dinov2_jax.models import vit

PROGRAMS = ("onnx", "stablehlo")
FORMATS = ("official", "huggingface", "timm", "safetensors", *PROGRAMS)

SQUARE = {
    "official": "the official code takes the root of its table's length for a side",
    "huggingface": "transformers takes the root of its table's length for a side",
}
"""Format whose position table must be square -> why."""


def save(
    model: vit.ViT,
    params: Mapping,
    path: str | os.PathLike,
    format: str = "safetensors",
    *,
    chunks: int = 0,
    image_size: adapt.Size | None = None,
    batch: int | None = None,
    dynamic: bool = False,
) -> None:
    """Write a backbone for PyTorch, its libraries, or a runtime.

    The architecture goes into the file or, for a .pth file, into `NAME.pth.json` beside
    it, and what was written is read back: its tensors and architecture must be those of
    the model. Lines on standard error tell how to load it, and what it lacks.

    Args:
        model: the backbone, as of `load_backbone`.
        params: its parameters, as of `load_backbone`; types are kept, but programs are
            float32.
        path: file to make, or for huggingface and stablehlo folder; must not exist.
        format: one of FORMATS: `official` is a .pth file for the reference's code.
        chunks: official: number of groups of blocks (`block_chunks`), 0 for none.
        image_size: pixels, a side or (rows, columns), whose grid the position table is
            resized to, and which a program takes; None for the model's own.
        batch: onnx, stablehlo: number of images; None leaves it open.
        dynamic: onnx: the program takes images of any size and resizes the positions.
    Raises: ValueError if the path exists, the parameters are not the model's or not
        finite, the format has no such model, or its package is missing.
    """
    if format not in FORMATS:
        raise errors.InputError(
            f"format={format!r}; choose one of {', '.join(FORMATS)}."
        )
    program = format in PROGRAMS
    for name, value, fits in (
        ("chunks", chunks, format == "official"),
        ("batch", batch, program),
        ("dynamic", dynamic, format == "onnx"),
    ):
        if value and not fits:
            raise errors.InputError(f"{name}={value} is not for format={format!r}.")
    model = model.clone(
        dtype=jnp.float32, gather=None, remat="none", unroll=1, drop_path=0.0
    )
    params = jax.tree.map(np.asarray, jax.device_get(dict(params)))
    _require_fitting(model, params)
    state = names.backbone_to_official(params, model.patch_size)
    finite.require(state)
    size = pixels(model, image_size)
    if not program:
        model, state = on_grid(format, model, state, size)
    params = names.backbone_from_official(state, vit.shapes(model))
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    out = pathlib.Path(path).expanduser().absolute()
    require_new(format, out)
    with errors.at(out.parent), staged(out) as hidden:
        write(
            format,
            hidden,
            model,
            params,
            state,
            chunks=chunks,
            size=size,
            batch=batch,
            dynamic=dynamic,
        )
        check.written(format, hidden, model, params, state)
    for line in notes(format, out, model):
        print(f"{path}: {line}", file=sys.stderr)


def _require_fitting(model: vit.ViT, params: Mapping) -> None:
    """Raises ValueError that names a parameter which is not as the model has it."""
    theirs, ours = (
        dict(zip(tree.names(t), (x.shape for x in jax.tree.leaves(t))))
        for t in (params, vit.shapes(model))
    )
    wrong = sorted(n for n in theirs | ours if theirs.get(n) != ours.get(n))
    if wrong:
        raise errors.InputError(
            f"{len(wrong)} of the parameters are not the model's, the first being "
            f"{wrong[0]}: expected shape {ours.get(wrong[0])}, got "
            f"{theirs.get(wrong[0])}. Give both as load_backbone returns them."
        )


def pixels(model: vit.ViT, size: adapt.Size | None) -> tuple[int, int]:
    """Rows and columns of an image size, the model's own for None.

    Raises: ValueError if they are not of whole patches.
    """
    rows, columns = adapt.pair(model.image_size if size is None else size)
    patch = model.patch_size
    if min(rows, columns) < 1 or rows % patch or columns % patch:
        raise errors.InputError(
            f"image_size={rows}x{columns} is not a multiple of the patch, {patch}."
        )
    return rows, columns


def on_grid(
    kind: str, model: vit.ViT, state: Mapping[str, np.ndarray], size: tuple[int, int]
) -> tuple[vit.ViT, dict]:
    """The model and its official state dict with the position table of a size.

    Raises: ValueError if the format needs a square one.
    """
    if kind in SQUARE and size[0] != size[1]:
        raise errors.InputError(
            f"image_size={size[0]}x{size[1]} has no {kind} form: {SQUARE[kind]}; give "
            "one side, or another format."
        )
    grid = adapt.single(*(side // model.patch_size for side in size))
    state = adapt.grid(state, grid, model.antialias, model.offset, model.table_grid)
    return model.clone(image_size=adapt.single(*size)), state


def require_new(kind: str, out: pathlib.Path) -> None:
    """Raises ValueError if what would be written is there already."""
    data = [out.with_name(f"{out.name}.data")] if kind == "onnx" else []
    for path in (out, sidecar.place(out), *data):
        if path.exists():
            raise errors.InputError(
                f"{path} exists; choose another name, or remove it first."
            )


@contextlib.contextmanager
def staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path in a hidden folder beside `out`; all that is there moves to `out` at the
    end, the file or folder of that name last, unless an error came before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as hidden:
        yield pathlib.Path(hidden) / out.name
        for path in sorted(pathlib.Path(hidden).iterdir(), reverse=True):
            os.replace(path, out.with_name(path.name))


def write(
    kind: str,
    path: pathlib.Path,
    model: vit.ViT,
    params: Mapping,
    state: Mapping[str, np.ndarray],
    *,
    heads: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    chunks: int = 0,
    size: tuple[int, int],
    batch: int | None = None,
    dynamic: bool = False,
) -> None:
    """Make the file or folder, with the architecture in or beside it.

    Args:
        kind: one of FORMATS.
        path: file or folder to make.
        model: the backbone.
        params: its parameters, float32, for stablehlo.
        state: its official state dict, for all others.
        heads: official: heads by name, see `export.write_official`.
        size: pixels of a program's images.
        chunks, batch, dynamic: see `save`.
    """
    about = export.about(model)
    if kind == "official":
        export.write_official(path, state, heads, chunks, about)
    elif kind == "huggingface":
        export.write_huggingface(path, state, about)
    elif kind == "timm":
        export.write_timm(path, state, about)
    elif kind == "safetensors":
        export.write_safetensors(path, state, about)
    elif kind == "onnx":
        onnx.write(path, state, model, about, None if dynamic else size, batch)
    else:
        stablehlo.write(path, model, params, about, size, batch)


def notes(kind: str, out: pathlib.Path, model: vit.ViT) -> list[str]:
    """How to load the result, and in what its library differs from the official code."""
    found, about = [], export.about(model)
    native = "{}x{}".format(*adapt.pair(model.image_size))
    if kind == "stablehlo":
        found.append(f"{out / 'about.json'} says how to call it")
    if kind == "huggingface":
        found.append(f'AutoModel.from_pretrained("{out}")')
        if model.in_channels != 3:
            found.append(
                f"no image processor: mean and standard deviation of its "
                f"{model.in_channels} channels are not known; normalise images as in "
                "training"
            )
    if kind == "timm":
        name, changes = timm.model(about)
        words = [f'"{name}"', f'checkpoint_path="{out}"']
        words += [f"{key}={value!r}" for key, value in changes.items()]
        found.append(f"timm.create_model({', '.join(words)})")
        folded = " and the cls position added to cls_token" * (model.registers > 0)
        found.append(
            f"mask_token is dropped{folded}: features are the same, but what is "
            "converted back has zeros in its place."
        )
    own = {"antialias": model.antialias, "offset": model.offset}
    theirs = check.resize(kind, model)
    if kind in ("official", "huggingface", "timm") and theirs != own:
        found.append(
            f"it resizes positions otherwise than the model ({theirs} against {own}): "
            f"features are the same at {native} and differ at other sizes; "
            "--image-size=SIDE (image_size=) fixes the grid that you will use."
        )
    return found
