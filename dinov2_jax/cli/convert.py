"""dinov2-jax convert: weights of any format to any other, checked before they are kept.

dinov2-jax convert --from=dinov2_vits14 --to=huggingface OUT
dinov2-jax convert --from=RUN --to=official backbone.pth

OUT appears only after both sides gave the same features on the same images.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import jax
import numpy as np

from dinov2_jax import errors, zoo
from dinov2_jax.cli import backbone_options
from dinov2_jax.convert import (
    adapt,
    check,
    export,
    huggingface,
    names,
    onnx,
    peers,
    read,
    sidecar,
    stablehlo,
    tables,
    timm,
)
from dinov2_jax.models import vit

FOLDERS = ("huggingface", "stablehlo")
PROGRAMS = ("onnx", "stablehlo")
FORMATS = ("official", "huggingface", "timm", "safetensors", *PROGRAMS)


def arguments(given: list[str]) -> argparse.Namespace:
    """The options, whole numbers checked."""
    parser = argparse.ArgumentParser(
        prog="dinov2-jax convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=pathlib.Path, metavar="OUT", help="file or folder to make")
    add(
        "--from",
        dest="source",
        required=True,
        help="an official name, a run's workdir, or a file or folder of any format",
    )
    add("--to", required=True, choices=FORMATS, help="format of OUT")
    backbone_options.add(parser)
    add(
        "--heads",
        action="store_true",
        help="official: with the heads, as the reference's training saves its teacher",
    )
    add("--chunks", type=int, default=0, help="official: block_chunks; 0 for none")
    add(
        "--image-size",
        type=backbone_options.pixels,
        help="pixels that the position grid is for: SIDE, or for onnx and stablehlo, "
        "which take no other, also ROWSxCOLUMNS",
    )
    add("--batch", type=int, help="onnx, stablehlo: number of images; default: any")
    add(
        "--tolerance",
        type=float,
        default=check.TOLERANCE,
        help="largest difference of features, over the largest feature (%(default)s)",
    )
    options = parser.parse_args(given)
    for option in ("heads", "chunks"):
        if getattr(options, option) and options.to != "official":
            parser.error(f"--{option} is for --to=official")
    if options.batch is not None and (options.to not in PROGRAMS or options.batch < 1):
        parser.error("--batch is for --to=onnx or stablehlo, and 1 or more")
    return options


def main(given: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = arguments(given)
    out = options.out.expanduser().absolute()
    data = [out.with_name(f"{out.name}.data")] if options.to == "onnx" else []
    for path in (out, sidecar.place(out), *data):
        if path.exists():
            raise errors.InputError(
                f"{path} exists; choose another name, or remove it first."
            )
    how = backbone_options.chosen(options) | {"image_size": options.image_size}
    found = zoo.read_any(options.source, **how)
    zoo.tell(found, options.source)
    if options.partial:
        found = completed(found, options.source)
    if options.heads and not found.heads:
        raise errors.InputError(f"{options.source} holds no heads; leave --heads out.")
    source = prepared(found, options.image_size, options.to in PROGRAMS)
    print(
        f"read     {len(found.backbone)} tensors of {options.source} ({found.format})"
    )
    with (
        errors.at(out.parent, "OUT"),
        _hidden(out) as hidden,
    ):
        path = pathlib.Path(hidden) / out.name
        write(options, path, source)
        verify(options, path, source)
        for made in sorted(pathlib.Path(hidden).iterdir(), reverse=True):
            os.replace(made, out.with_name(made.name))
    print(f"kept     {out}")
    for line in notes(options.to, out, source):
        print(f"note     {line}")
    return 0


@contextlib.contextmanager
def _hidden(out: pathlib.Path) -> Iterator[str]:
    """A folder beside OUT for what is not checked yet."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as hidden:
        yield hidden


def completed(found: read.Weights, source: str) -> read.Weights:
    """The weights with what they lack initialised anew, and without what is too many."""
    params, _ = zoo.filled(zoo.module(found.about), found.backbone, True, source)
    state = names.backbone_to_official(params, found.about["patch_size"])
    return dataclasses.replace(found, backbone=state)


@dataclasses.dataclass(frozen=True)
class Source:
    """What is converted, as official tensors and as ours."""

    weights: read.Weights
    model: vit.ViT
    params: dict  # float32
    size: tuple[int, int]  # pixels of the images that it is checked on

    @property
    def about(self) -> dict:
        """Arguments of `ViT` that say what the backbone computes."""
        return export.about(self.model)


def prepared(
    found: read.Weights, size: tuple[int, int] | None, program: bool
) -> Source:
    """The weights on the wanted position grid, and our model with them.

    A program fixes the grid itself, and its weights stay as they are.
    Raises: ValueError if the size is no multiple of the patch, or no square.
    """
    about, patch = found.about, found.about["patch_size"]
    size = adapt.pair(about["image_size"]) if size is None else size
    if min(size) < 1 or size[0] % patch or size[1] % patch:
        raise errors.InputError(
            f"--image-size={size[0]}x{size[1]} is no multiple of the patch, {patch}."
        )
    if not program:
        if size[0] != size[1]:
            raise errors.InputError(
                f"--image-size={size[0]}x{size[1]}: the position table is square; give "
                "one side, or convert to onnx or stablehlo."
            )
        own = about["antialias"], about["offset"]
        state = adapt.grid(found.backbone, size[0] // patch, *own, about["grid"])
        about = about | {"image_size": size[0]}
        found = dataclasses.replace(found, backbone=state, about=about)
    model = zoo.module(about)
    params = names.backbone_from_official(found.backbone, zoo.shapes(model))
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    return Source(found, model, params, size)


def write(options: argparse.Namespace, path: pathlib.Path, source: Source) -> None:
    """Make the file or folder."""
    state, about = source.weights.backbone, source.about
    if options.to == "official":
        heads = source.weights.heads if options.heads else None
        export.write_official(path, state, heads, options.chunks, about)
    elif options.to == "huggingface":
        export.write_huggingface(path, state, about)
    elif options.to == "timm":
        export.write_timm(path, state, about)
    elif options.to == "safetensors":
        export.write_safetensors(path, state, about)
    elif options.to == "onnx":
        onnx.write(path, state, source.model, about, source.size, options.batch)
    else:
        model, params = source.model, source.params
        stablehlo.write(path, model, params, about, source.size, options.batch)


def verify(options: argparse.Namespace, path: pathlib.Path, source: Source) -> None:
    """Print how the file compares with its source.

    Raises: ValueError if tensors differ, or features by more than the tolerance.
    """
    kind, model, params = options.to, source.model, source.params
    heads = source.weights.heads if options.heads else None
    same = check.tensors(kind, path, source.weights.backbone, params, heads)
    broken = set(same.lost) - check.folded(kind, model.registers)
    if broken:
        raise errors.InputError(
            f"{path.name} does not give back {tables.some(broken)}; nothing is kept. "
            "This is a mistake of the converter: please report it."
        )
    print(f"wrote    {size_of(path) / 1e6:.1f} MB; tensors equal to the bit: {same}")
    images = check.images([source.size], model.in_channels, options.batch or 2)
    try:
        (worst,), ran = check.features(kind, path, model, params, source.about, images)
    except peers.Absent as absent:
        print(f"checked  tensors alone, features not: {absent}", file=sys.stderr)
        return
    rows, columns = source.size
    print(
        f"checked  {len(images[0])} images of {rows}x{columns} pixels by {ran}: largest "
        f"absolute difference cls {worst.cls:.1e}, patches {worst.patches:.1e} "
        f"(largest feature {worst.scale_cls:.2g}, {worst.scale_patches:.2g})"
    )
    if not worst.within(options.tolerance):
        raise errors.InputError(
            f"features differ by more than --tolerance={options.tolerance:g} of the "
            "largest; nothing is kept."
        )


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file and what lies beside it, or of a folder's files."""
    folder = path if path.is_dir() else path.parent
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def notes(kind: str, out: pathlib.Path, source: Source) -> list[str]:
    """How to load the result, and in what its library differs from the official code."""
    found, model = [], source.model
    native = f"{model.image_size}x{model.image_size}"
    if kind == "stablehlo":
        found.append(f"{out / 'about.json'} says how to call it")
    if kind == "huggingface":
        found.append(f'AutoModel.from_pretrained("{out}")')
    if kind == "timm":
        name, changes = timm.model(source.about)
        words = [f'"{name}"', f'checkpoint_path="{out}"']
        words += [f"{key}={value!r}" for key, value in changes.items()]
        found.append(f"timm.create_model({', '.join(words)})")
        folded = " and the cls position added to cls_token" * (model.registers > 0)
        found.append(
            f"mask_token is dropped{folded}: features are the same, but what is "
            "converted back has zeros in its place."
        )
    own = {"antialias": model.antialias, "offset": model.offset}
    theirs = {"huggingface": huggingface.resize(model.registers), "timm": timm.resize()}
    if kind in theirs and theirs[kind] != own:
        found.append(
            f"it resizes positions otherwise than the official code ({theirs[kind]} "
            f"against {own}): features are the same at {native} and differ slightly at "
            "other sizes; --image-size=SIDE fixes the grid that you will use."
        )
    return found
