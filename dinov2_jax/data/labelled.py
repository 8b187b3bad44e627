"""Batches of augmented images with their labels, to train a classifier on."""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import augment, build, decode, draws, pipeline, resizing
from dinov2_jax.data.reading import Reader
from dinov2_jax.data.record import Source

SCALE, ASPECT, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Builder:
    """Builds the batch of a step."""

    reader: Reader
    order: grain.MapDataset
    size: int
    seed: int
    batch_size: int

    @property
    def nbytes(self) -> int:
        """Bytes of a batch."""
        return self.batch_size * (3 * self.size**2 + 4 + 8)  # images, labels, ids

    def __call__(self, step: int) -> build.EvalBatch:
        images = np.empty((self.batch_size, self.size, self.size, 3), np.uint8)
        labels = np.empty(self.batch_size, np.int32)
        ids = np.empty(self.batch_size, np.int64)
        reading = build.Reading(self.reader, self.order, self.seed)
        positions = range(
            int(step) * self.batch_size, (int(step) + 1) * self.batch_size
        )
        for slot, (pixels, label, index) in enumerate(reading.images(positions)):
            labels[slot], ids[slot] = label, index
            rng = np.random.default_rng([self.seed, build.VIEWS, positions[slot]])
            images[slot] = view(pixels, self.size, rng)
        return build.EvalBatch(images, labels, ids, reading.counts()[0])


def view(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random resized crop, by chance mirrored.

    Args:
        image: [H W 3] uint8.
        size: side of the result, pixels.
        rng: source of the random choices.
    Returns: [size size 3] uint8.
    Source: torchvision's RandomResizedCrop (bicubic) and RandomHorizontalFlip, as the
        reference trains linear classifiers.
    """
    numbers = rng.random((draws.CROP_ATTEMPTS, 4))
    box = draws.boxes(numbers, *image.shape[:2], SCALE, ASPECT)
    out = resizing.pillow(image)(box, size)
    return augment.flipped(out) if rng.random() < FLIP else out


def train_batches(
    source: Source,
    *,
    size: int,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
    max_pixels: int = decode.MAX_PIXELS,
    rules: decode.Rules = decode.RULES,
) -> Iterator[build.EvalBatch]:
    """The batches of steps start..stop-1, each a pure function of (seed, step).

    Args:
        source: the images; each comes once in len(source) positions.
        size: side of a view, pixels.
        seed: >= 0.
        batch_size: images of a step.
        start, stop: steps, 0 <= start <= stop.
        workers, threads, prefetch, max_pixels, rules: as `pipeline.train_batches`.
    Returns: an iterator of EvalBatch; close() it to end its threads and workers.
    Raises: ValueError if sizes do not fit, and while iterating if 100 records in a row
        cannot be decoded.
    """
    if len(source) < 1 or batch_size < 1 or size < 1:
        raise errors.InputError(
            f"{len(source)} images, {batch_size=}, {size=}: all need 1."
        )
    if seed < 0 or not 0 <= start <= stop:
        raise errors.InputError(f"{seed=}, {start=} must be >= 0 and {stop=} >= start.")
    builder = Builder(
        reader=Reader(source, max_pixels, rules=rules),
        order=pipeline.order(source, seed),
        size=size,
        seed=seed,
        batch_size=batch_size,
    )
    steps = grain.MapDataset.range(start, stop).map(builder)
    return pipeline.iterate(steps, workers, threads, prefetch, builder.nbytes)
