"""Which labels each image has, of sets whose images have several."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import sources
from dinov2_jax.escaping import unescaped


def of_tfds(spec: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes and targets of a TFDS set with the features of TFDS's VOC.

    Args:
        spec: tfds:NAME..., whose entries have `labels` and may have
            `labels_no_difficult`.
    Returns: K names; [n K] int8, 1 where an image has a label, 0 where not, -1 where
        all of its objects of that class are difficult ones.
    Raises: ValueError if it is no such set.
    """
    import tensorflow_datasets as tfds

    builder, split, names = _opened(spec)
    features = builder.info.features
    skip = tfds.decode.SkipDecoding()
    images = [k for k in features if isinstance(features[k], tfds.features.Image)]
    data = builder.as_data_source(split, decoders=dict.fromkeys(images, skip))
    inner = features["labels"].feature
    out = np.zeros((len(data), inner.num_classes), np.int8)
    for row, entry in zip(out, (data[i] for i in range(len(data)))):
        row[entry["labels"]] = 1 if len(names) == 1 else -1
        row[entry[names[-1]]] = 1
    return tuple(inner.names), out


def classes_of_tfds(spec: str) -> tuple[str, ...]:
    """The classes of `of_tfds`, and its errors, without reading an entry."""
    return tuple(_opened(spec)[0].info.features["labels"].feature.names)


def _opened(spec: str) -> tuple[Any, str, list[str]]:
    """A TFDS builder, the split, and which of its features are lists of labels."""
    match = sources.TFDS.fullmatch(spec.removeprefix("tfds:"))
    if not spec.startswith("tfds:") or match is None:
        raise errors.InputError(
            f"{spec}: several labels an image come from tfds:NAME[:SPLIT][@DATA_DIR], or "
            "from --labels train=FILE --labels val=FILE."
        )
    import tensorflow_datasets as tfds

    sources.open_source(spec)  # says what is wrong with the set
    builder = tfds.builder(match[1], data_dir=match[3])
    features = builder.info.features
    names = [k for k in ("labels", "labels_no_difficult") if k in features]
    inner = getattr(features["labels"], "feature", None) if names else None
    known = isinstance(inner, tfds.features.ClassLabel)
    if not known:
        raise errors.InputError(
            f"{spec} has no `labels`, a sequence of classes; its features are "
            f"{sorted(features)}."
        )
    return builder, match[2] or "train", names


def of_file(
    path: pathlib.Path, names: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes and targets from a JSON file.

    Args:
        path: {"classes": [...], "images": {STEM: [class, ...]}}, and optionally
            "difficult", like images, of labels that shall not count.
        names: of the images, escaped; their stems, not escaped, are the keys.
    Returns: as `of_tfds`, in the order of `names`.
    Raises: ValueError if the file is no such list or lacks an image.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        classes = tuple(map(str, found["classes"]))
        places = {name: i for i, name in enumerate(classes)}
        out = np.zeros((len(names), len(classes)), np.int8)
        for row, name in zip(out, names):
            stem = pathlib.Path(unescaped(name)).stem
            row[[places[x] for x in found.get("difficult", {}).get(stem, ())]] = -1
            row[[places[x] for x in found["images"][stem]]] = 1
        return classes, out
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.InputError(
            f"{path} does not give the labels of these images ({error!r}); it needs "
            '{"classes": [...], "images": {NAME: [class, ...]}}.'
        ) from error
