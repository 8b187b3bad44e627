"""dinov2-jax embed: features of every image of a source, in a folder of shards.

dinov2-jax embed --weights=dinov2_vits14 --data=folder:/path/to/images --out=features
dinov2-jax embed --weights=runs/demo --data=demo:val --out=features --what=cls,patches

Re-run the same command to resume, within a shard too. Read the folder with
dinov2_jax.open_features(OUT).
"""

import argparse
import contextlib
import functools
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import errors, features, lease, processes, sharding, shards, zoo
from dinov2_jax.cli import (
    backbone_options,
    decoding,
    depths,
    embed_checks,
    identity,
    storing,
    workdir,
)
from dinov2_jax.data import decode, fingerprint, pipeline, rules, sources
from dinov2_jax.data.batch import normalize
from dinov2_jax.data.record import Source
from dinov2_jax.models import vit
from dinov2_jax.train import progress


def arguments(given: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="dinov2-jax embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        help="an official name, a workdir, RUN@best, RUN@STEP, or any file",
    )
    add("--name", help="official name that the weights must fit")
    add("--data", required=True, help="source, as config.data.train")
    add("--out", required=True, type=pathlib.Path, help="folder of the features")
    add(
        "--what",
        default="cls,mean_patch",
        help=f"some of {','.join(embed_checks.KINDS)}",
    )
    backbone_options.add(parser)
    add(
        "--image-size",
        type=backbone_options.size,
        help="pixels of the position table, SIDE or ROWSxCOLUMNS; see load_backbone",
    )
    add("--resize", type=int, default=256, help="shorter side, pixels")
    add("--crop", type=int, default=224, help="side of the central crop, pixels")
    add("--batch-size", type=int, default=64, help="images at once, of a process")
    add("--shard-size", type=int, default=4096, help="images of a shard")
    add(
        "--dtype",
        default="float32",
        choices=embed_checks.DTYPES,
        help="of the stored features",
    )
    add("--compute", default="float32", choices=embed_checks.COMPUTE)
    add("--limit", type=int, help="so many images, spread over the source")
    add("--workers", type=int, default=0, help="processes that decode")
    add("--threads", type=int, default=2, help="threads that decode")
    decoding.add_arguments(parser)
    return parser.parse_args(given)


def main(given: list[str]) -> int:
    """Run the command; returns the exit code."""
    parsed = arguments(given)
    options = vars(parsed) | backbone_options.chosen(parsed)
    del options["num_heads"]
    processes.start()
    options["what"] = tuple(options["what"].split(","))
    embed(options.pop("weights"), options.pop("data"), options.pop("out"), **options)
    return 0


def embed(
    weights: str | os.PathLike,
    data: str,
    out: str | os.PathLike,
    *,
    what: tuple[str, ...] = ("cls", "mean_patch"),
    name: str | None = None,
    which: str = "teacher",
    prefix: str | None = None,
    heads: int | None = None,
    partial: bool = False,
    image_size: int | tuple[int, int] | None = None,
    resize: int = 256,
    crop: int = 224,
    batch_size: int = 64,
    shard_size: int = 4096,
    dtype: str = "float32",
    compute: str = "float32",
    limit: int | None = None,
    workers: int = 0,
    threads: int = 2,
    max_pixels: int = decode.MAX_PIXELS,
    range: str = "auto",
    damaged: str = "fill",
) -> tuple[dict[str, shards.Rows], object, dict]:
    """Features of every image of a source, on disk; what is there is not made again.

    Every process takes shards of its own and computes on its own devices. Memory does
    not grow with the source: rows are written as they come.

    Args:
        weights, name, which, prefix, heads, partial, image_size: as `load_backbone`.
        data: a source, as `config.data.train`.
        out: the folder.
        what: kinds: cls [D], registers [R D], mean_patch [D], patches [N D].
        resize, crop: the official evaluation transform, pixels; crop a multiple of the
            patch size.
        batch_size: images at once, a multiple of the devices of a process.
        shard_size: images of a shard, a multiple of batch_size.
        dtype: of what is stored; float32 or float16.
        compute: float32 or bfloat16.
        limit: at most so many images, spread over the source.
        workers, threads, max_pixels: of decoding.
        range: of images of more than 8 bits, "LOW,HIGH": the samples that become black
            and white; auto takes what the file declares.
        damaged: what is done with JPEGs of corrupt data: fill (gray) or skip.
    Returns: as `open_features`, once all processes are done.
    Raises: ValueError, before any work, if settings do not fit together or the folder
        holds features of another making.
    """
    out = pathlib.Path(out).expanduser()
    mesh = sharding.make_mesh(1, jax.local_devices())
    embed_checks.sizes(
        what,
        batch_size,
        shard_size,
        mesh.size,
        limit,
        resize=resize,
        crop=crop,
        dtype=dtype,
        compute=compute,
        workers=workers,
        threads=threads,
        max_pixels=max_pixels,
    )
    source = sources.open_source(data)
    told = rules.of(range, damaged)
    pipeline.require_decodable(source, max_pixels=max_pixels, rules=told)
    depths.tell(data, source, max_pixels, told)
    backbone, params = zoo.load_backbone(
        name,
        weights,
        which=which,
        prefix=prefix,
        heads=heads,
        partial=partial,
        image_size=image_size,
    )
    embed_checks.model(backbone, what, crop)
    records = min(len(source), limit or len(source))
    manifest = {
        "weights": str(weights),
        "weights_sha256": identity.digest(params),
        "model": identity.architecture(backbone),
        "code": workdir.code(),
        "data": data,
        "data_sha256": fingerprint.of(source),
        "records": records,
        "shard_size": shard_size,
        "what": list(what),
        "resize": resize,
        "crop": crop,
        "dtype": dtype,
        "compute": compute,
        "max_pixels": max_pixels,
        "range": range,
        "damaged": damaged,
        "versions": workdir.versions(),
    }
    apply = forward(backbone.clone(dtype=jnp.dtype(compute)), what, dtype)
    return store(
        functools.partial(apply, params),
        source,
        out,
        manifest,
        mesh,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        max_pixels=max_pixels,
        rules=told,
    )


def store(
    apply: Callable[[jax.Array], dict],
    source: Source,
    out: pathlib.Path,
    manifest: dict,
    mesh: Mesh,
    *,
    batch_size: int,
    workers: int,
    threads: int,
    max_pixels: int,
    rules: decode.Rules,
) -> tuple[dict[str, shards.Rows], object, dict]:
    """What a function makes of every image of a source, on disk; as `embed`.

    Args:
        apply: jitted, [b crop crop 3] uint8 -> {kind: [b ...]}.
        source: the images.
        out: the folder.
        manifest: what the features are made of; with records, shard_size, what, resize
            and crop.
        mesh: devices of this process alone.
        batch_size, workers, threads, max_pixels: as `embed`.
        rules: as decode.decode.
    """
    crop = manifest["crop"]
    shape = jax.ShapeDtypeStruct((batch_size, crop, crop, 3), np.uint8)
    jax.eval_shape(apply, shape)  # what does not fit is told before a file is written
    first = jax.process_index() == 0
    lock = lease.held(out, "--out") if first else contextlib.nullcontext()
    with errors.at(out, "--out"), lock:
        sharding.any_process(False)  # nobody writes before the first holds the lease
        return _stored(
            apply,
            source,
            out,
            manifest,
            mesh,
            batch_size=batch_size,
            workers=workers,
            threads=threads,
            max_pixels=max_pixels,
            rules=rules,
        )


def _stored(apply, source, out, manifest, mesh, *, batch_size, **reading):
    """As `store`, in a folder that nobody else writes in."""
    shards.claim(out, manifest)
    records, shard_size = manifest["records"], manifest["shard_size"]
    progress, stretches = storing.left(out, manifest)
    shown = storing.Shown(progress)
    for stretch in stretches:
        first = stretch.first * shard_size + stretch.rows
        last = min(stretch.last * shard_size, records)
        part = storing.Part(source, records, first, last)
        batches = pipeline.eval_batches(
            part,
            batch_size=batch_size,
            resize=manifest["resize"],
            crop=manifest["crop"],
            **reading,
        )
        with contextlib.closing(batches):
            made = features.stream(apply, batches, mesh)
            for images, skipped in storing.write(out, part, made, stretch, manifest):
                shown.show(images, skipped)
        shown.rest(len(part))
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("embed")
    found = shards.open_features(out)
    _tell_skipped(out, found[1], progress)
    return found


def forward(backbone: vit.ViT, what: tuple[str, ...], dtype: str) -> Callable:
    """(params, [b H W 3] uint8) -> {kind: [b ...]} in the dtype that is stored."""

    @jax.jit
    def apply(params, images):
        out = backbone.apply({"params": params}, normalize(images))
        found = {
            "cls": out.cls,
            "registers": out.registers,
            "mean_patch": out.patches.astype(jnp.float32).mean(axis=1),
            "patches": out.patches,
        }
        return {kind: found[kind].astype(dtype) for kind in what}

    return apply


def _tell_skipped(out: pathlib.Path, index, shown: progress.Progress) -> None:
    """Name the images that could not be decoded in skipped.txt."""
    names = index.filter(np.logical_not(index["ok"].to_numpy()))["name"].to_pylist()
    if names and jax.process_index() == 0:
        workdir.write_text(out / "skipped.txt", "".join(f"{x}\n" for x in names))
        shown.say(f"{len(names)} images could not be decoded; see {out}/skipped.txt")
