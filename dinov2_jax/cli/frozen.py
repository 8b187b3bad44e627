"""A frozen backbone and its features of a labelled source, kept on disk."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, sharding, zoo
from dinov2_jax.cli import (
    depths,
    doubts,
    embed,
    embed_checks,
    identity,
    setting,
    workdir,
)
from dinov2_jax.cli.setting import Setting
from dinov2_jax.data import classes, decode, fingerprint, pipeline, rules, sources
from dinov2_jax.data.record import Source
from dinov2_jax.models import vit

COMPUTE = embed_checks.COMPUTE
DECODING = setting.Table(
    max_pixels=Setting(
        decode.MAX_PIXELS, "largest image that is decoded, pixels", setting.COUNT
    ),
    range=Setting(
        "auto",
        "samples that become black and white, of images of more than 8 bits",
        setting.Range("auto or LOW,HIGH", rules.is_range),
    ),
    damaged=Setting(
        "fill",
        "JPEGs of corrupt data: filled, or skipped; with maps, refused",
        setting.choice(*rules.DAMAGED),
    ),
)
"""Settings of every task that decodes images."""
IMAGES = DECODING | setting.Table(
    resize=Setting(256, "shorter side of a resized image, pixels", setting.COUNT),
    crop=Setting(224, "side of its central crop, pixels", setting.COUNT),
    compute=Setting(
        "float32", "number format of the forward pass", setting.choice(*COMPUTE)
    ),
    batch_size=Setting(64, "images at once, whatever the devices", setting.COUNT),
    limit=Setting(0, "images of a set, evenly spread; 0 for all", setting.WHOLE),
    workers=Setting(0, "processes that decode", setting.WHOLE),
    threads=Setting(2, "threads that decode", setting.COUNT),
)
"""Settings of every task at image level."""

SHARD = 4096  # images of a shard


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Weights that were loaded."""

    model: vit.ViT
    params: dict
    sha256: str  # of the weights alone

    @property
    def architecture(self) -> dict:
        """What else its features depend on: equal weights may differ in it."""
        return identity.architecture(self.model)

    @property
    def variant(self) -> str:
        """Such as `S/14`, with `reg` behind for registers; the width for another."""
        size = {"width": self.model.width, "depth": self.model.depth}
        fits = [n for n, v in vit.VARIANTS.items() if size.items() <= v.items()]
        registers = " reg" if self.model.registers else ""
        name = fits[0] if fits else f"width {self.model.width} x {self.model.depth}"
        return f"{name}/{self.model.patch_size}{registers}"


class Set(NamedTuple):
    """Features of a source, of the images that could be decoded."""

    rows: np.ndarray  # [n D]
    labels: np.ndarray  # [n] int, -1 where there is none
    records: np.ndarray  # [n] numbers in the source
    names: list[str]
    source: Source
    about: dict  # spec, images, skipped, sha256


def load(weights: str, name: str | None = None, **how) -> Backbone:
    """The backbone that a text stands for, see `load_backbone`.

    Raises: ValueError if it takes no RGB images.
    """
    model, params = zoo.load_backbone(name, weights, **how)
    if model.in_channels != 3:
        raise errors.InputError(
            f"These weights take images of {model.in_channels} channels; sources give "
            "3. Choose weights for RGB."
        )
    return Backbone(model, params, identity.digest(params))


def inputs(job: Any) -> dict[str, Any]:
    """The sources of train and val, and the files of labels, of a job."""
    require_crop(job.backbone, job.settings)
    specs = {"train": job.train, "val": job.val}
    opened = {k: opened_source(job, spec) for k, spec in specs.items() if spec}
    files = {f"labels/{k}": pathlib.Path(file) for k, file in job.labels.items()}
    for name, path in files.items():
        require_file(f"--labels {name.removeprefix('labels/')}", path)
    return opened | files


def classified(job: Any) -> dict[str, Any]:
    """`inputs` of a job whose train and val name the same classes, or some of them."""
    found = inputs(job)
    for split in ("train", "val"):
        require_names(getattr(job, split), found[split])
        labels = getattr(found[split], "labels", None)  # known without reading images
        if labels is not None:
            labels = labels[chosen(len(labels), job.settings.limit)]
            require_labels(getattr(job, split), labels, len(found[split].classes))
            doubts.of_labels(job, split, labels, found[split].classes)
        doubts.of_empty_folders(job, split, found[split])
    classes.numbers(found["train"].classes, found["val"].classes, "val")
    return found


def chosen(count: int, limit: int) -> np.ndarray:
    """Numbers of the records of a set that a limit leaves, as `storing.Part` has them."""
    some = min(count, limit or count)
    return np.arange(some) * count // some


def opened_source(job: Any, spec: str) -> Source:
    """A source of which something can be decoded; `job.sources` gets it."""
    source, s = job.sources.get(spec), job.settings
    if source is None:
        source = job.sources[spec] = sources.open_source(spec)
    told = rules.of(s.range, s.damaged)
    pipeline.require_decodable(source, max_pixels=s.max_pixels, rules=told)
    return source


def require_crop(backbone: Backbone, settings: types.SimpleNamespace) -> None:
    """Raises ValueError unless patches fill the crop."""
    if settings.crop % backbone.model.patch_size:
        raise errors.InputError(
            f"crop={settings.crop} is no multiple of the patch size "
            f"{backbone.model.patch_size} of these weights."
        )
    embed_checks.crop_in_image(settings.resize, settings.crop)


def require_file(option: str, path: pathlib.Path) -> None:
    """Raises ValueError, naming the option, unless a path is that of a file."""
    if not path.expanduser().is_file():
        raise errors.InputError(f"{option}={path} is no file.")


def cls_of(backbone: Backbone, compute: str) -> Callable:
    """Jitted: [b H W 3] uint8 -> {cls: [b D] float32}."""
    model = backbone.model.clone(dtype=jnp.dtype(compute))
    forward = embed.forward(model, ("cls",), "float32")
    return functools.partial(forward, backbone.params)


def features(
    backbone: Backbone,
    apply: Callable[[jax.Array], dict],
    kind: str,
    spec: str,
    cache: pathlib.Path,
    settings: types.SimpleNamespace,
    source: Source | None = None,
    sha256: str | None = None,
) -> Set:
    """The features of a source; those on disk are not made again.

    Args:
        backbone: whose they are.
        apply: jitted, [b H W 3] uint8 -> {kind: [b D]}.
        kind: what `apply` makes; part of the key on disk.
        spec: the source.
        cache: folder of all features; each set has its own folder in it.
        settings: with the names of IMAGES.
        source: what to read in the place of the source that `spec` names.
        sha256: its fingerprint, if it was taken already.
    Raises: ValueError, before any work, if sizes do not fit or nothing decodes.
    """
    s, mesh = settings, sharding.make_mesh()
    require_crop(backbone, s)
    source = sources.open_source(spec) if source is None else source
    decoding = rules.of(s.range, s.damaged)
    pipeline.require_decodable(source, max_pixels=s.max_pixels, rules=decoding)
    depths.tell(spec, source, s.max_pixels, decoding)
    # More devices than images asked for: the batch grows, results stay the same.
    batch = -(-s.batch_size // mesh.size) * mesh.size
    manifest = {
        "weights_sha256": backbone.sha256,
        "model": backbone.architecture,
        "code": workdir.code(),
        "data": _whole(spec),
        "data_sha256": sha256 or fingerprint.of(source),
        "records": min(len(source), s.limit or len(source)),
        "shard_size": -(-SHARD // batch) * batch,
        "what": [kind],
        "resize": s.resize,
        "crop": s.crop,
        "dtype": "float32",
        "compute": s.compute,
        "max_pixels": s.max_pixels,
        "range": s.range,
        "damaged": s.damaged,
    }
    key = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    kinds, index, _ = embed.store(
        apply,
        source,
        cache / f"{kind}-{key[:16]}",
        manifest | {"versions": workdir.versions()},
        mesh,
        batch_size=batch,
        workers=s.workers,
        threads=s.threads,
        max_pixels=s.max_pixels,
        rules=decoding,
    )
    kept = np.flatnonzero(index["ok"].to_numpy())
    if not len(kept):
        raise errors.InputError(f"{spec}: no image could be decoded; check its files.")
    about = {
        "spec": spec,
        "images": len(kept),
        "skipped": len(index) - len(kept),
        "sha256": manifest["data_sha256"],
    }
    records, labels, names = (index[k].to_numpy() for k in ("record", "label", "name"))
    return Set(
        kinds[kind][kept], labels[kept], records[kept], list(names[kept]), source, about
    )


def split(job: Any, name: str, apply: Callable, kind: str = "cls") -> Set:
    """The features of one of a job's inputs, `train` or `val`."""
    return features(
        job.backbone,
        apply,
        kind,
        getattr(job, name),
        job.cache,
        job.settings,
        job.inputs[name],
        job.fingerprints[name],
    )


def require_names(split: str, source: Source) -> None:
    """Raises ValueError if a source's images have no classes."""
    if not source.classes:
        raise errors.InputError(
            f"{split} has no classes; use class folders, a labelled data set, or a task "
            "that needs none."
        )


def numbered_as(train: Source, val: Set) -> Set:
    """A set whose labels are numbers of the training classes, by name."""
    numbers = classes.numbers(train.classes, val.source.classes, "val")
    return val._replace(labels=numbers[val.labels])


def require_classes(found: Set) -> None:
    """Raises ValueError unless each image has one of the source's classes."""
    require_names(found.about["spec"], found.source)
    require_labels(found.about["spec"], found.labels, len(found.source.classes))


def require_labels(spec: str, labels: np.ndarray, count: int) -> None:
    """Raises ValueError unless all labels are numbers of classes."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= count:
        raise errors.InputError(
            f"{spec}: labels run from {low} to {high}; they must lie in 0 to "
            f"{count - 1}, its {count} classes."
        )


def _whole(spec: str) -> str:
    """A spec whose path does not depend on the working folder."""
    kind, _, rest = spec.partition(":")
    if kind in ("folder", "tar", "arrayrecord") and ";" not in spec:
        return f"{kind}:{os.path.abspath(os.path.expanduser(rest))}"
    return spec
