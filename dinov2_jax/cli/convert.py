"""dinov2-jax convert: weights of any format to any other, checked before they are kept.

dinov2-jax convert --from=dinov2_vits14 --to=huggingface OUT
dinov2-jax convert --from=RUN --to=official backbone.pth

OUT appears only after both sides gave the same features on the same images. Where the
package that reads OUT is missing, nothing is kept and the exit code is 1, unless
--no-check says that OUT is wanted without that comparison.
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import numpy as np

from dinov2_jax import errors, zoo
from dinov2_jax.cli import backbone_options
from dinov2_jax.convert import check, names, peers, read, save
from dinov2_jax.models import vit


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
        help="an official name, a workdir, RUN@best, RUN@STEP, or a file or folder of "
        "any format",
    )
    add("--to", required=True, choices=save.FORMATS, help="format of OUT")
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
        help="pixels, SIDE or ROWSxCOLUMNS, that the position table is resized to; the "
        "size that onnx and stablehlo take",
    )
    add("--batch", type=int, help="onnx, stablehlo: number of images; default: any")
    add(
        "--dynamic",
        action="store_true",
        help="onnx: take images of any size, with the resize of positions in the graph",
    )
    add(
        "--no-check",
        action="store_true",
        help="keep OUT although its features are not compared; its tensors and "
        "architecture are read back anyway",
    )
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
    if options.dynamic and options.to != "onnx":
        parser.error("--dynamic is for --to=onnx")
    if options.batch is not None and (
        options.to not in save.PROGRAMS or options.batch < 1
    ):
        parser.error("--batch is for --to=onnx or stablehlo, and 1 or more")
    return options


def main(given: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = arguments(given)
    out = options.out.expanduser().absolute()
    save.require_new(options.to, out)
    how = backbone_options.chosen(options) | {"image_size": options.image_size}
    found = zoo.read_any(options.source, **how)
    zoo.tell(found, options.source)
    if options.partial:
        found = completed(found, options.source)
    if options.heads and not found.heads:
        raise errors.InputError(f"{options.source} holds no heads; leave --heads out.")
    source = prepared(options, found)
    print(
        f"read     {len(found.backbone)} tensors of {options.source} ({found.format})"
    )
    with errors.at(out.parent, "OUT"), save.staged(out) as path:
        save.write(
            options.to,
            path,
            source.model,
            source.params,
            source.weights.backbone,
            heads=found.heads if options.heads else None,
            chunks=options.chunks,
            size=source.size,
            batch=options.batch,
            dynamic=options.dynamic,
        )
        verify(options, path, source)
    print(f"kept     {out}")
    for line in save.notes(options.to, out, source.model):
        print(f"note     {line}")
    return 0


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


def prepared(options: argparse.Namespace, weights: read.Weights) -> Source:
    """The weights on the position grid asked for, and our model with them.

    A program fixes the grid itself, and its weights stay as they are.
    """
    model = zoo.module(weights.about)
    size = save.pixels(model, options.image_size)
    if options.to not in save.PROGRAMS:
        model, state = save.on_grid(options.to, model, weights.backbone, size)
        weights = dataclasses.replace(weights, backbone=state)
    params = names.backbone_from_official(weights.backbone, vit.shapes(model))
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    return Source(weights, model, params, size)


def verify(options: argparse.Namespace, path: pathlib.Path, source: Source) -> None:
    """Print how the file compares with its source.

    Raises: ValueError if tensors or the architecture differ, or features by more than
        the tolerance, or these cannot be compared.
    """
    kind, model, params = options.to, source.model, source.params
    heads = source.weights.heads if options.heads else None
    same, about = check.written(
        kind, path, model, params, source.weights.backbone, heads
    )
    print(f"wrote    {size_of(path) / 1e6:.1f} MB; tensors equal to the bit: {same}")
    if options.no_check:
        print("checked  tensors alone, features not (--no-check)", file=sys.stderr)
        return
    sizes = check.sizes(source.size, model.patch_size, options.dynamic)
    images = check.images(sizes, model.in_channels, options.batch or 2)
    try:
        differences, ran = check.features(kind, path, model, params, about, images)
    except peers.Absent as absent:
        raise errors.InputError(
            f"The features of {path.name} cannot be compared: {absent} Or add "
            "--no-check to keep it without; nothing is kept."
        ) from absent
    for worst in differences:
        rows, columns = worst.size
        print(
            f"checked  {len(images[0])} images of {rows}x{columns} pixels by {ran}: "
            f"largest absolute difference cls {worst.cls:.1e}, patches "
            f"{worst.patches:.1e} "
            f"(largest feature {worst.scale_cls:.2g}, {worst.scale_patches:.2g})"
        )
    if source.weights.guess:
        print(
            "checked  but for the number of attention heads, a guess on both sides",
            file=sys.stderr,
        )
    if not all(worst.within(options.tolerance) for worst in differences):
        raise errors.InputError(
            f"features differ by more than --tolerance={options.tolerance:g} of the "
            "largest; nothing is kept."
        )


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file and what lies beside it, or of a folder's files."""
    folder = path if path.is_dir() else path.parent
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
