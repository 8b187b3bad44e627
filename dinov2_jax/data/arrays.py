"""Images in TFDS data sets and in ArrayRecord files, read without TensorFlow."""

import bisect
import concurrent.futures
import difflib
import itertools
import os
import re
import struct
from collections.abc import Iterator

from dinov2_jax import errors, escaping
from dinov2_jax.data import containers, fingerprint, manifest, patterns, remote
from dinov2_jax.data.faults import Faults, Refused
from dinov2_jax.data.record import Record
from dinov2_jax.data.walk import say

PACKED = re.compile(r"data-\d+-of-\d+\.arrayrecord(\.part)?|\.parts")
MAGIC = b"DLBL"  # opens a record that carries a label
LABELS = 2**31  # that are told apart
OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for reading at random


def labelled_record(image: bytes, label: int) -> bytes:
    """An ArrayRecord entry with a label.

    Args:
        image: the encoded image file.
        label: the class, >= 0.
    Returns: b"DLBL", the label as 8-byte little-endian integer, the image.
    """
    return MAGIC + struct.pack("<q", label) + image


class Entries:
    """The entries of ArrayRecord files, one file after the other, read at random.

    array_record's own data source asks for lists of positions, for which its reader
    looks through the whole index; a range costs the same however large a file is, and
    keeps half of the memory.
    """

    def __init__(self, paths: list[str]):
        """
        Args:
            paths: of the files; each is opened once to count its entries.
        Raises: ValueError that names those that are no whole ArrayRecord files.
        """
        self._paths, self._readers = paths, {}
        for path in paths:
            escaping.utf8(path, "ArrayRecord")  # refused before any is opened
        with concurrent.futures.ThreadPoolExecutor() as pool:
            counts = list(pool.map(self._count, paths))
        wrong = [count for count in counts if isinstance(count, str)]
        if wrong:
            raise Refused(
                wrong,
                f"copy or pack {len(wrong)} of {len(paths)} files again",
                "cannot be read as ArrayRecord: ",
            )
        self.counts: list[int] = counts
        self._starts = [0, *itertools.accumulate(self.counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> bytes:
        """Raises: ValueError, IndexError or RuntimeError if it cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no record {index} among {len(self)}.")
        file = bisect.bisect_right(self._starts, index) - 1
        if file not in self._readers:
            self._readers[file] = self._open(self._paths[file])
        position = index - self._starts[file]
        return self._readers[file].read(position, position + 1)[0]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_readers": {}}  # each process opens its own

    def _count(self, path: str) -> int | str:
        """How many entries a file has, or what is wrong with it."""
        try:
            return self._open(path).num_records()
        except errors.InputError as error:
            return str(error)

    @staticmethod
    def _open(path: str):
        """A reader of one file, which threads may share."""
        from array_record.python import array_record_module

        text = escaping.utf8(path, "ArrayRecord")
        try:
            reader = array_record_module.ArrayRecordReader(text, OPTIONS)
            sound, why = reader.ok(), ""
        except (RuntimeError, ValueError) as error:  # of files below 64 KiB
            sound, why = False, f" ({error})"
        if not sound:
            what = containers.of(path)
            told = (
                f"is {what}" if what else "is missing, cut short or of another format"
            )
            raise errors.InputError(f"{path} {told}{why}")
        return reader


class ArrayRecords:
    """Entries of ArrayRecord files: an encoded image, or a `labelled_record`."""

    def __init__(self, pattern: str):
        """
        Args:
            pattern: path of the files, see `patterns.find`; or of a folder with the
                manifest.json of `dinov2-jax data pack`.
        Raises: ValueError if no file matches, they hold no record, or they are not
            what the manifest says.
        """
        self._pattern, spec = pattern, f"arrayrecord:{pattern}"
        packed, known, notes = os.path.expanduser(pattern), None, []
        if os.path.isdir(packed) and not _plain(packed):
            known = manifest.read(packed)
            paths = [os.path.join(packed, shard["file"]) for shard in known["shards"]]
        else:
            paths, notes = patterns.find("arrayrecord", pattern)
        self.classes = tuple(known["classes"]) if known else ()
        self._paths = paths
        self._data = Entries(paths)
        if not len(self._data):
            raise errors.InputError(f"{spec} holds no record.")
        for path, shard, count in zip(
            paths, known["shards"] if known else (), self._data.counts
        ):
            if count != shard["records"]:
                raise errors.InputError(
                    f"{path} holds {count} records, but its {manifest.NAME} says "
                    f"{shard['records']}; copy or pack it again."
                )
        faults = Faults(notes)
        faults.tell(spec)
        self.faults = tuple(faults.lines)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        try:
            entry = self._data[int(index)]
        except (RuntimeError, ValueError, IndexError) as error:
            raise errors.FileError(
                f"{self.name(index)} cannot be read: {error}"
            ) from error
        if entry[: len(MAGIC)] != MAGIC:
            return Record(entry, -1)
        start = len(MAGIC) + 8
        if len(entry) < start:
            raise errors.FileError(f"{self.name(index)} is cut short in its label.")
        (label,) = struct.unpack("<q", entry[len(MAGIC) : start])
        if not 0 <= label < (len(self.classes) or LABELS):
            raise errors.FileError(
                f"{self.name(index)} has label {label}, but there are "
                f"{len(self.classes) or LABELS} classes."
            )
        return Record(entry[start:], label)

    def name(self, index: int) -> str:
        return f"arrayrecord:{escaping.escaped(self._pattern)} record {index}"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return tuple(self._paths)

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "arrayrecord", self.classes
        yield from map(fingerprint.File, self._paths)


def _plain(folder: str) -> bool:
    """Whether a folder holds ArrayRecord files that `data pack` has not written."""
    names = os.listdir(folder)
    packed = manifest.NAME in names or any(map(PACKED.fullmatch, names))
    suffix = patterns.SUFFIXES["arrayrecord"]
    below = (name for _, _, files in os.walk(folder) for name in files)
    return not packed and any(suffix.search(name) for name in below)


class Tfds:
    """A prepared TFDS data set in ArrayRecord format; images stay encoded."""

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None):
        """
        Args:
            name: as TFDS knows it, with /config and :version where wanted.
            split: train, validation[:10%] and so on.
            data_dir: where it was prepared; None for TFDS's own default.
        Raises: ValueError if it is unknown, not prepared, or has no image.
        """
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise errors.InputError(
                f"tfds:{name} needs TFDS; pip install tensorflow-datasets."
            ) from error
        self._title = f"tfds:{name}:{split}"
        builder = _builder(tfds, name, data_dir)
        features = builder.info.features
        images = [
            key for key in features if isinstance(features[key], tfds.features.Image)
        ]
        if not images:
            raise errors.InputError(
                f"tfds:{name} has no image; its features are {sorted(features)}."
            )
        self._image = "image" if "image" in images else images[0]
        labels = {
            key: feature
            for key, feature in dict(features).items()
            if isinstance(feature, tfds.features.ClassLabel)
        }
        self._label = next((x for x in ("label", *labels) if x in labels), None)
        names = labels[self._label].names if self._label else None
        self.classes = tuple(map(escaping.normalized, names or ()))
        if len(labels) > 1:
            others = ", ".join(key for key in labels if key != self._label)
            say(f"{self._title}: labels are those of {self._label!r}, not of {others}")
        try:
            self._data = builder.as_data_source(
                split, decoders={self._image: tfds.decode.SkipDecoding()}
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            raise errors.InputError(
                f"{self._title} cannot be opened: {error}"
            ) from error
        self._parts = tuple(
            (part.filename, part.skip, part.take)
            for part in builder.info.splits[split].file_instructions
        )
        ends = [(str(path), skip + max(take, 0)) for path, skip, take in self._parts]
        _require_whole(self._title, ends)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        try:
            entry = self._data[int(index)]
        except (RuntimeError, ValueError, IndexError) as error:
            raise errors.FileError(
                f"{self.name(index)} cannot be read: {error}"
            ) from error
        label = int(entry[self._label]) if self._label else -1
        if label >= (len(self.classes) or LABELS):
            raise errors.FileError(
                f"{self.name(index)} has label {label}, but there are "
                f"{len(self.classes)} classes."
            )
        return Record(entry[self._image], max(label, -1))

    def name(self, index: int) -> str:
        return f"{escaping.escaped(self._title)} record {index}"

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "tfds", self._title, self._image, self._label, self.classes
        for path, skip, take in self._parts:
            yield fingerprint.File(path)
            yield skip, take


def _require_whole(title: str, parts: list[tuple[str, int]]) -> None:
    """Raises ValueError if a file is missing, damaged or holds too few records."""
    parts = [(path, most) for path, most in parts if not remote.is_remote(path)]
    missing = [path for path, _ in parts if not os.path.isfile(path)]
    if missing:
        raise Refused(
            [f"{path} is missing" for path in missing],
            f"copy {len(missing)} of the {len(parts)} files of {title}, or prepare it "
            "again",
        )
    counts = Entries([path for path, _ in parts]).counts
    for (path, most), count in zip(parts, counts, strict=True):
        if count < most:
            raise errors.InputError(
                f"{path} holds {count} records, but {title} reads {most} of it; prepare "
                "it again."
            )


def _builder(tfds, name: str, data_dir: str | None):
    """The TFDS builder of a prepared data set."""
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(re.split("[/:]", name)[0], known, 3)
        like = f"; similar names are {', '.join(near)}" if near else ""
        raise errors.InputError(
            f"TFDS knows no data set {name!r}{like}. A data set of your own needs its "
            "data_dir: tfds:NAME:SPLIT@DATA_DIR."
        ) from None  # TFDS's own message lists every data set there is
    if not builder.info.splits:
        raise errors.InputError(
            f"tfds:{name} is not prepared in {builder.data_dir}; run tfds.builder("
            f"{name!r}, data_dir=..., file_format='array_record')"
            ".download_and_prepare() once."
        )
    return builder
