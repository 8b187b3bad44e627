"""Writing any source as shards of ArrayRecord, each whole or not at all."""

import dataclasses
import hashlib
import io
import os
import pathlib

import numpy as np
from PIL import Image

from dinov2_jax import writing
from dinov2_jax.data import arrays, decode, manifest, rules
from dinov2_jax.data.reading import Reader
from dinov2_jax.data.record import Record, Source
from dinov2_jax.escaping import shown, utf8

OPTIONS = "group_size:1,uncompressed"  # each record alone; images are compressed


@dataclasses.dataclass(frozen=True)
class Written:
    """A shard that is there, and what became of the records it was made from."""

    shard: manifest.Shard
    labelled: int  # records with a label
    shrunk: int
    skipped: tuple[tuple[int, str], ...]  # number in the source, why
    reasons: tuple[str, ...] = ()  # of each of them, in a word or two


@dataclasses.dataclass(frozen=True)
class Packer:
    """Writes shard i of a source.

    Fields: `ids` [n] the records in their new order, None for all as they are;
    `records` of a shard; `longest` side of an image, pixels, larger ones are shrunk
    and encoded anew as JPEG of `quality`, None for none; `max_pixels` and `rules` as
    decode.decode.
    """

    source: Source
    folder: pathlib.Path
    records: int
    ids: np.ndarray | None = None
    longest: int | None = None
    quality: int = 95
    max_pixels: int = decode.MAX_PIXELS
    rules: decode.Rules = decode.RULES

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-len(self.source) // self.records)

    def name(self, number: int) -> str:
        """File name of a shard."""
        return f"data-{number:05}-of-{self.shards:05}.arrayrecord"

    def __call__(self, number: int) -> Written:
        """Write a shard; the same bytes every time.

        Raises: OSError if the disk is full or not writable.
        """
        with writing.replacing(self.folder / self.name(number)) as part:
            return self._write(number, part)

    def _write(self, number: int, part: pathlib.Path) -> Written:
        """Write the records of a shard to a file."""
        from array_record.python import array_record_module

        start = number * self.records
        stop = min(start + self.records, len(self.source))
        labelled, shrunk, skipped, reasons = 0, 0, [], []
        reader = Reader(self.source)
        writer = array_record_module.ArrayRecordWriter(
            utf8(part, "ArrayRecord"), OPTIONS
        )
        for position in range(start, stop):
            index = position if self.ids is None else int(self.ids[position])
            try:
                record, _ = reader.record(index)
                image, changed = self._encoded(record)
            except (OSError, decode.DecodeError) as error:
                why = f"{self.source.name(index)}: {shown(str(error))}"
                skipped.append((index, why))
                reasons.append(rules.reason(error))
                continue
            shrunk += changed
            if record.label >= 0:
                image = arrays.labelled_record(image, record.label)
                labelled += 1
            writer.write(image)
        writer.close()
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        size = part.stat().st_size
        written = stop - start - len(skipped)
        shard = manifest.Shard(
            file=self.name(number), records=written, bytes=size, sha256=digest
        )
        return Written(shard, labelled, shrunk, tuple(skipped), tuple(reasons))

    def _encoded(self, record: Record) -> tuple[bytes, bool]:
        """The bytes to keep, and whether the image was shrunk.

        Raises: DecodeError if it is no image.
        """
        image = record.image
        pixels = decode.decode(
            image,
            max_pixels=self.max_pixels,
            longest=self.longest,
            rules=self.rules,
        )
        if isinstance(image, np.ndarray):
            return _saved(pixels, "PNG"), pixels.shape != image.shape
        if self.longest is None or max(decode.size_of(image)) <= self.longest:
            return image, False
        return _saved(pixels, "JPEG", quality=self.quality), True


def _saved(pixels: np.ndarray, kind: str, **more) -> bytes:
    """An encoded image."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **more)
    return out.getvalue()
