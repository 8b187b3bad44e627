"""One batch of a training step or of an evaluation, built from its records."""

import dataclasses
from typing import NamedTuple

import grain
import numpy as np
from PIL import Image

from dinov2_jax.data import augment, batch, decode, masks
from dinov2_jax.data.record import Source

# What each kind of random number is for; part of its seed.
ORDER, VIEWS, MASKS, SUBSTITUTES = range(4)
FAR = 2**31  # positions among which substitutes are drawn
ATTEMPTS = 100  # records in a row that may fail before the data is given up


class EvalBatch(NamedTuple):
    """Images of one evaluation step, in the order of the source."""

    images: np.ndarray  # [b crop crop 3] uint8, zeros where there is none
    labels: np.ndarray  # [b] int32, -1 where there is none
    ids: np.ndarray  # [b] int64 record numbers, -1 for padding and skipped records
    skipped: np.ndarray  # [s] int64 record numbers that could not be decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBuilder:
    """Builds this process's part of the training batch of a step."""

    source: Source
    order: grain.MapDataset
    multicrop: augment.MultiCrop
    side: int
    max_block: int
    mask_probability: float | None
    mask_ratio: tuple[float, float]
    capacity: int
    seed: int
    batch_size: int
    group_size: int
    first: int
    local: int
    max_pixels: int

    def __call__(self, step: int) -> tuple[batch.Batch, np.ndarray]:
        skipped, views = [], []
        for slot in range(self.first, self.first + self.local):
            position = int(step) * self.batch_size + slot
            image = self._image(position, skipped)
            rng = np.random.default_rng([self.seed, VIEWS, position])
            views.append(self.multicrop(image, rng))
        global_crops, local_crops = map(np.stack, zip(*views))
        packed = self._masks(int(step))
        built = batch.Batch(global_crops, local_crops, *packed)
        return built, np.array(skipped, np.int64)

    def _image(self, position: int, skipped: list[int]) -> np.ndarray:
        """The image of a position, or of the first substitute that decodes."""
        index = int(self.order[position])
        for attempt in range(ATTEMPTS):
            try:
                return read(self.source, index, self.max_pixels)[0]
            except (decode.DecodeError, OSError) as error:
                last = f"{self.source.name(index)}: {error}"
            skipped.append(index)
            # Drawn from the order, not from all records: a Mixture keeps its weights.
            rng = np.random.default_rng([self.seed, SUBSTITUTES, position, attempt])
            index = int(self.order[int(rng.integers(FAR))])
        raise ValueError(
            f"{ATTEMPTS} records in a row cannot be decoded, the last being {last}. "
            "Check that the source holds images and that its files can be read."
        )

    def _masks(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Batch.masks, mask_indices and mask_weights of a step."""
        groups, views = self.local // self.group_size, self.multicrop.global_number
        rows, patches = self.group_size * views, self.side * self.side
        if self.mask_probability is None:
            return batch.every_patch(groups, rows, views, patches)
        drawn = np.empty((groups, rows, patches), bool)
        for number in range(groups):
            group = self.first // self.group_size + number
            drawn[number] = masks.draw(
                np.random.default_rng([self.seed, MASKS, step, group]),
                rows,
                (self.side, self.side),
                self.mask_probability,
                self.mask_ratio,
                max_patches=self.max_block,
            ).reshape(rows, patches)
        return batch.pack_masks(drawn, views, self.capacity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalBuilder:
    """Builds this process's part of an evaluation batch."""

    source: Source
    count: int
    resize: int
    crop: int
    batch_size: int
    first: int
    local: int
    max_pixels: int

    def __call__(self, step: int) -> EvalBatch:
        images = np.zeros((self.local, self.crop, self.crop, 3), np.uint8)
        labels = np.full(self.local, -1, np.int32)
        ids, skipped = np.full(self.local, -1, np.int64), []
        for slot in range(self.local):
            position = int(step) * self.batch_size + self.first + slot
            if position >= self.count:
                break
            index = position * len(self.source) // self.count
            try:
                image, label = read(self.source, index, self.max_pixels)
                images[slot] = center_crop(image, self.resize, self.crop)
            except (decode.DecodeError, OSError):
                skipped.append(index)
                continue
            labels[slot], ids[slot] = label, index
        return EvalBatch(images, labels, ids, np.array(skipped, np.int64))


def read(source: Source, index: int, max_pixels: int) -> tuple[np.ndarray, int]:
    """The pixels and the label of one record.

    Args:
        source: where it is.
        index: its number.
        max_pixels: largest image that is decoded.
    Returns: [H W 3] uint8, label.
    Raises: DecodeError or OSError if it cannot be read.
    """
    record = source[index]
    return decode.decode(record.image, max_pixels=max_pixels), record.label


def center_crop(image: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """The middle of an image, as torchvision's Resize and CenterCrop give it.

    Args:
        image: [H W 3] uint8.
        resize: length of the shorter side before the cut, pixels.
        crop: side of the result, pixels, <= resize.
    Returns: [crop crop 3] uint8.
    Raises: DecodeError if one side is more than 100 times the other.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if max(height, width) > 100 * short:
        # Resizing a line of pixels to full height would take gigabytes.
        raise decode.DecodeError(f"an image of {height} x {width} has no middle.")
    size = (resize * width // short, resize * height // short)
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - crop) / 2) for length in size)
    return np.asarray(picture.crop((left, top, left + crop, top + crop)))
