"""Photographs with label or depth maps from TFDS data sets."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import decode, fingerprint, sources
from dinov2_jax.data.pair import Pair, require_one_size
from dinov2_jax.escaping import escaped

LABELS = ("segmentation_label", "segmentation_mask", "label_map", "annotation")
DEPTHS = ("depth", "depth_map")
"""What TFDS sets call their maps; a LabeledImage is found under any name."""


@dataclasses.dataclass(frozen=True)
class TfdsPairs:
    """The pairs of a prepared TFDS data set in ArrayRecord format, by number."""

    spec: str
    data: Any  # TFDS's data source
    feature: str  # of the maps
    read: Callable[[np.ndarray, str], np.ndarray]  # (map, its name) -> [H W]
    classes: tuple[str, ...] = ()
    max_pixels: int = decode.MAX_PIXELS
    rules: decode.Rules = decode.RULES

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Pair:
        """Raises ValueError, naming the record, if it cannot be used."""
        entry, name = self._entry(index), self.name(index)
        try:
            image = decode.decode(
                entry["image"], max_pixels=self.max_pixels, rules=self.rules
            )
        except decode.DecodeError as error:
            raise errors.InputError(f"{name} cannot be read: {error}") from error
        target = self._map(entry, name)
        require_one_size(image.shape, target.shape, name, f"its {self.feature}")
        return Pair(image, target)

    def target(self, index: int) -> np.ndarray:
        """[H W] the map alone; of the photograph, the header is compared with it.

        Raises: ValueError, naming the record, if it cannot be used.
        """
        entry, name = self._entry(index), self.name(index)
        try:
            size = decode.size_of(entry["image"], max_pixels=self.max_pixels)
        except decode.DecodeError as error:
            raise errors.InputError(f"{name} cannot be read: {error}") from error
        target = self._map(entry, name)
        require_one_size(size, target.shape, name, f"its {self.feature}")
        return target

    def _entry(self, index: int) -> dict:
        """What the data source gives of a record."""
        try:
            return self.data[int(index)]
        except (RuntimeError, IndexError, OSError) as error:
            name = self.name(index)
            raise errors.InputError(f"{name} cannot be read: {error}") from error

    def _map(self, entry: dict, name: str) -> np.ndarray:
        """[H W] of an entry."""
        found = np.asarray(entry[self.feature])
        if found.ndim == 3 and found.shape[2] == 1:
            found = found[..., 0]
        if found.ndim != 2:
            raise errors.InputError(
                f"{name}: {self.feature} is {found.shape}; a map has one channel."
            )
        return self.read(found, name)

    def name(self, index: int) -> str:
        return f"{escaped(self.spec)} record {index}"

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "tfds pairs", self.feature, self.classes
        yield fingerprint.of(sources.open_source(self.spec))


def opened(spec: str, names: tuple[str, ...]) -> tuple[Any, str, tuple[str, ...]]:
    """The data of a spec, which of its features is the map, and names of classes.

    Args:
        spec: tfds:NAME[/CONFIG][:VERSION][:SPLIT][@DATA_DIR].
        names: features that are maps, LABELS or DEPTHS.
    Raises: ValueError if the set is unknown, not prepared, or has no such feature.
    """
    sources.open_source(spec)  # says what is wrong with the set
    import tensorflow_datasets as tfds

    match = sources.TFDS.fullmatch(spec.removeprefix("tfds:"))
    builder = tfds.builder(match[1], data_dir=match[3])
    features, kind = builder.info.features, tfds.features.LabeledImage
    labelled = [k for k in features if isinstance(features[k], kind)]
    found = [k for k in names if k in features]
    found = labelled + found if names is LABELS else found
    if not found or "image" not in features:
        raise errors.InputError(
            f"{spec} has no image with one of {', '.join(names)}; its features are "
            f"{', '.join(sorted(features))}."
        )
    classes = tuple(features[found[0]].names or ()) if found[0] in labelled else ()
    # Pictures stay encoded, all but the map: decode.decode reads the photograph.
    skip = tfds.decode.SkipDecoding()
    images = [k for k in features if isinstance(features[k], tfds.features.Image)]
    decoders = {name: skip for name in images if name != found[0]}
    data = builder.as_data_source(match[2] or "train", decoders=decoders)
    return data, found[0], classes
