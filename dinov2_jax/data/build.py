"""One batch of a training step or of an evaluation, built from its records."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data import augment, batch, buffers, decode, draws, masks
from dinov2_jax.data.reading import Reader
from dinov2_jax.data.record import Record, Source

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


class Built(NamedTuple):
    """A training batch and what it cost to read."""

    batch: batch.Batch | batch.Uncropped
    skipped: np.ndarray  # [s] int64 numbers of records that were replaced
    retries: int  # reads that were tried again


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBuilder:
    """Builds this process's part of the training batch of a step."""

    reader: Reader
    order: grain.MapDataset
    multicrop: draws.MultiCrop
    canvas: int | None
    resize: str
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

    @property
    def nbytes(self) -> int:
        """Bytes of a batch, but for a few of its draws."""
        m, views = self.multicrop, self.multicrop.global_number
        areas = views * m.global_size**2 + m.local_number * m.local_size**2
        pixels = areas if self.canvas is None else self.canvas**2
        masks = self.local * views * self.side**2
        buffers = self.local // self.group_size * self.capacity * 8  # int32, float32
        return self.local * pixels * 3 + masks + buffers

    def __call__(self, step: int) -> Built:
        start = int(step) * self.batch_size + self.first
        positions = range(start, start + self.local)
        reading = Reading(self.reader, self.order, self.seed, self.canvas)
        made = self._views if self.canvas is None else self._canvases
        masks = self._masks(int(step))
        return Built(made(reading, positions, masks), *reading.counts())

    def _views(self, reading: "Reading", positions: range, masks) -> batch.Batch:
        """Crops, cut here image by image: large images never stand side by side."""
        views = []
        for numbers, (image, *_) in zip(
            self._numbers(positions), reading.images(positions)
        ):
            made = self.multicrop.draws(numbers, *image.shape[:2])
            views.append(augment.views(image, made, self.multicrop, self.resize))
        return batch.Batch(*map(np.stack, zip(*views)), *masks)

    def _canvases(self, reading: "Reading", positions: range, masks) -> batch.Uncropped:
        """Images as they are, and what the devices shall cut from them."""
        images = self._squares.take()
        sizes, numbers = np.empty((2, self.local), int), self._numbers(positions)
        for slot, (image, *_) in enumerate(reading.images(positions)):
            height, width = sizes[:, slot] = image.shape[:2]
            images[slot, :height, :width] = image
            images[slot, height:] = images[slot, :height, width:] = 0
        made = self.multicrop.draws(numbers, *sizes)
        return batch.Uncropped(images, made, *masks)

    @functools.cached_property
    def _squares(self) -> buffers.Buffers:
        """Where the images of a batch are laid out."""
        return buffers.Buffers((self.local, self.canvas, self.canvas, 3))

    def _numbers(self, positions: range) -> np.ndarray:
        """[b V n] the chance of each position."""
        seeds = ([self.seed, VIEWS, position] for position in positions)
        rngs = map(np.random.default_rng, seeds)
        return np.stack([self.multicrop.numbers(rng) for rng in rngs])

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


@dataclasses.dataclass
class Reading:
    """Images by position; a record that cannot be read is replaced by another.

    Fields: `order` gives the record of a position; `longest` as decode.decode;
    `skipped` and `retries` count what happened so far.
    """

    reader: Reader
    order: grain.MapDataset
    seed: int
    longest: int | None = None
    skipped: list[int] = dataclasses.field(default_factory=list)
    retries: int = 0

    def images(self, positions: range) -> Iterator[tuple[np.ndarray, int, int]]:
        """Pixels, label and number of each position's record, or of its substitute.

        Raises: ValueError if ATTEMPTS records in a row cannot be decoded.
        """
        # Looked up together: images push Grain's own work out of the caches.
        indices = [int(self.order[position]) for position in positions]
        yield from map(self._image, positions, indices)

    def _image(self, position: int, index: int) -> tuple[np.ndarray, int, int]:
        """Those of one position, whose record is `index`."""
        for attempt in range(ATTEMPTS):
            try:
                record, retries = self.reader.record(index)
                self.retries += retries
                return self._decoded(record), record.label, index
            except (decode.DecodeError, OSError) as error:
                last = f"{self.reader.source.name(index)}: {error}"
                self.retries += getattr(error, "retries", 0)
            self.skipped.append(index)
            # Drawn from the order, not from all records: a Mixture keeps its weights.
            rng = np.random.default_rng([self.seed, SUBSTITUTES, position, attempt])
            index = int(self.order[int(rng.integers(FAR))])
        raise errors.InputError(
            f"{ATTEMPTS} records in a row cannot be decoded, the last being {last}. "
            "Check that the source holds images and that its files can be read."
        )

    def _decoded(self, record: Record) -> np.ndarray:
        """[H W 3] uint8."""
        return decode.decode(
            record.image,
            max_pixels=self.reader.max_pixels,
            longest=self.longest,
            rules=self.reader.rules,
        )

    def counts(self) -> tuple[np.ndarray, int]:
        """[s] int64 numbers of the records skipped; reads that were repeated."""
        return np.array(self.skipped, np.int64), self.retries


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
    rules: decode.Rules

    @property
    def nbytes(self) -> int:
        """Bytes of a batch."""
        return self.local * (3 * self.crop**2 + 4 + 8)  # images, labels, ids

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
                image, label = read(self.source, index, self.max_pixels, self.rules)
                images[slot] = center_crop(image, self.resize, self.crop)
            except (decode.DecodeError, OSError):
                skipped.append(index)
                continue
            labels[slot], ids[slot] = label, index
        return EvalBatch(images, labels, ids, np.array(skipped, np.int64))


def read(
    source: Source, index: int, max_pixels: int, rules: decode.Rules
) -> tuple[np.ndarray, int]:
    """The pixels and the label of one record.

    Args:
        source: where it is.
        index: its number.
        max_pixels, rules: as decode.decode.
    Returns: [H W 3] uint8, label.
    Raises: DecodeError or OSError if it cannot be read.
    """
    record, _ = Reader(source).record(index)
    image = decode.decode(record.image, max_pixels=max_pixels, rules=rules)
    return image, record.label


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
