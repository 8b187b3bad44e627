"""dinov2-jax data stats: sizes, formats, classes, and the speed of each stage here."""

import argparse
import collections
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax import config as settings
from dinov2_jax import errors, writing
from dinov2_jax.cli import assemble, data, decoding, depths, workdir
from dinov2_jax.data import (
    augment,
    decode,
    draws,
    pipeline,
    resizing,
    rules,
    sources,
)
from dinov2_jax.data.reading import Reader
from dinov2_jax.data.record import Record, Source
from dinov2_jax.escaping import shown
from dinov2_jax.models import vit
from dinov2_jax.viz import sources as pictures

FORMATS = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"RI": "WEBP", b"GI": "GIF"}
FORMATS |= {b"II": "TIFF", b"MM": "TIFF"}
BATCH = 32  # images of a batch that is timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this action."""
    add = parser.add_argument
    add("--records", type=int, default=1000, help="in the sample; default %(default)s")
    add("--config", help="whose crops are cut; default: dinov2_jax/config.py")
    add("--out", type=pathlib.Path, help="folder for stats.json and stats.png")
    decoding.add_arguments(parser)
    parser.set_defaults(max_pixels=None, range=None, damaged=None)


def main(options: argparse.Namespace) -> int:
    """Run the action; returns the exit code."""
    decoding.require(options)
    config = settings.load(options.config) if options.config else settings.default()
    for name in ("max_pixels", "range", "damaged"):
        if (value := getattr(options, name)) is not None:
            config.data[name] = value
    way = config.data
    resizing.require(way.resize)
    if options.out:
        with errors.at(options.out, "--out"):
            options.out.mkdir(parents=True, exist_ok=True)
            writing.check(options.out / "stats.json")
    told = rules.of(way.range, way.damaged)
    source = sources.open_source(data.spec(options.source))
    number = min(options.records, len(source))
    ids = np.arange(number) * len(source) // number
    cv2.setNumThreads(1)
    found = {"source": options.source, "records": len(source), "sample": number}
    found["samples"] = depths.measured(source, ids, way.max_pixels)
    found["range"] = way.range
    needed = depths.needed(found["samples"])
    if needed and told.range is None:  # measured under the range that the images have
        told = rules.of(needed, way.damaged)
    found |= described(source, ids, way.max_pixels, told)
    if not found["readable"]:
        raise errors.InputError(
            f"{options.source}: none of {number} records can be decoded"
            f"{decoding.counted(found['reasons'])}; the first is "
            f"{found['unreadable'][0]}"
        )
    patch_size = vit.variant(config.model.variant)["patch_size"]
    found["images_per_cpu_s"] = speeds(
        source, ids, assemble.multicrop(config), patch_size, way, told
    )
    found |= bottlenecks(found["images_per_cpu_s"])
    print(text(found))
    if options.out:
        with errors.at(options.out, "--out"):
            workdir.write_text(
                options.out / "stats.json", json.dumps(found, indent=2) + "\n"
            )
            pictures.write(options.out / "stats.png", found)
        print(f"{shown(str(options.out))}/stats.json, stats.png")
    return 0


def described(
    source: Source, ids: np.ndarray, max_pixels: int, told: decode.Rules
) -> dict[str, Any]:
    """Sizes, formats and classes of some records."""
    formats, labels = collections.Counter(), collections.Counter()
    sizes, lengths, unreadable, reasons = [], [], [], []
    for index in ids:
        try:
            record, _ = Reader(source).record(int(index))
            pixels = decode.decode(record.image, max_pixels=max_pixels, rules=told)
        except (OSError, decode.DecodeError) as error:
            unreadable.append(f"{source.name(int(index))}: {shown(str(error))}")
            reasons.append(rules.reason(error))
            continue
        plain = isinstance(record.image, np.ndarray)
        formats["array" if plain else FORMATS.get(record.image[:2], "other")] += 1
        lengths.append(record.image.nbytes if plain else len(record.image))
        sizes.append(pixels.shape[:2])
        labels[record.label] += 1
    height, width = np.array(sizes).reshape(-1, 2).T
    unlabelled = labels.pop(-1, 0)
    return {
        "readable": len(sizes),
        "unreadable": unreadable,
        "reasons": dict(collections.Counter(reasons)),
        "formats": dict(formats.most_common()),
        "bytes": _quantiles(lengths),
        "height": _quantiles(height),
        "width": _quantiles(width),
        "classes": len(source.classes) or len(labels),
        "unlabelled": unlabelled,
        "images_of_a_class": _quantiles(list(labels.values())),
    }


def _quantiles(values) -> list[float]:
    """Smallest, quarter, middle, three quarters, largest; empty of nothing."""
    if not len(values):
        return []
    return np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()


def speeds(
    source: Source,
    ids: np.ndarray,
    multicrop: draws.MultiCrop,
    patch_size: int,
    way: ConfigDict,
    told: decode.Rules,
) -> dict[str, float]:
    """Images per second of one core, of each stage alone and of both pipelines.

    Args:
        source: where the images come from.
        ids: [n] numbers of records.
        multicrop: the augmentation.
        patch_size: pixels.
        way: config.data.
        told: the rules by which images are decoded.
    Returns: `read`, `decode`, `crops` (cut on the host); `host` and `device`: all that
        the host does where it, or a device, cuts the crops.
    """
    kept = []
    read = _rate(lambda i: kept.append(source[int(i)]), ids)
    images = []

    def pixels(record: Record) -> None:
        images.append(
            decode.decode(record.image, max_pixels=way.max_pixels, rules=told)
        )

    decoded = _rate(pixels, kept[:256])
    images = images[:64]
    rng = np.random.default_rng(0)

    def cut(image: np.ndarray) -> None:
        made = multicrop.draws(multicrop.numbers(rng), *image.shape[:2])
        augment.views(image, made, multicrop, way.resize)

    crops = _rate(cut, images)
    found = {"read": read, "decode": decoded, "crops": crops}
    for place, side, steps in (("host", None, 2), ("device", way.canvas, 8)):
        batches = pipeline.train_batches(
            source,
            multicrop=multicrop,
            patch_size=patch_size,
            mask_probability=0.5,
            mask_ratio=(0.1, 0.5),
            seed=0,
            batch_size=BATCH,
            group_size=BATCH,
            start=0,
            stop=steps + 1,
            threads=0,
            canvas=side,
            resize=way.resize,
            max_pixels=way.max_pixels,
            rules=told,
        )
        next(batches)
        found[place] = BATCH * _rate(lambda _, made=batches: next(made), range(steps))
        batches.close()
    return found


def _rate(work: Callable[[Any], Any], items) -> float:
    """Items per second of processor time; those that cannot be read are passed over."""
    began, done = time.process_time(), 0
    for item in items:
        try:
            work(item)
        except (OSError, decode.DecodeError):
            continue
        done += 1
    return done / max(time.process_time() - began, 1e-9)


def bottlenecks(rates: dict[str, float]) -> dict[str, str]:
    """The slowest stage where the host cuts the crops, and where a device does."""
    stages = ("read", "decode", "crops")
    return {
        "bottleneck_host": min(stages, key=rates.get),
        "bottleneck_device": min(stages[:2], key=rates.get),
    }


def text(found: dict[str, Any]) -> str:
    """What is shown on the screen."""
    rates, per_class = found["images_per_cpu_s"], found["images_of_a_class"]
    formats = ", ".join(f"{n} {name}" for name, n in found["formats"].items())
    bad = found["unreadable"]
    reasons = decoding.counted(found["reasons"])
    lines = [
        f"{shown(found['source'])}: {found['records']} records",
        f"sample  {found['sample']}: {formats}; {len(bad)} unreadable{reasons}",
        *[f"        {line}" for line in bad[:5]],
        *[f"range   {line}" for line in depths.lines(found["samples"], found["range"])],
        f"bytes   {_range(found['bytes'])}",
        f"height  {_range(found['height'])}",
        f"width   {_range(found['width'])}",
        f"classes {found['classes']}, {_range(per_class)} images of one in the sample",
        f"        {found['unlabelled']} unlabelled",
        f"speed   {', '.join(f'{k} {v:.0f}' for k, v in rates.items())} images/s a core",
    ]
    for place in ("host", "device"):
        lines.append(
            f"crops on the {place}: 1,000 images/s need {1000 / rates[place]:.1f} "
            f"cores; the bottleneck is {found[f'bottleneck_{place}']}"
        )
    return "\n".join(lines)


def _range(values: list[float]) -> str:
    """Smallest, middle and largest; a dash of nothing."""
    if not values:
        return "-"
    return f"{values[0]:.0f} .. {values[2]:.0f} .. {values[-1]:.0f}"
