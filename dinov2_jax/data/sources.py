"""Opening the images that a spec names, one source or several by weight."""

import collections
import difflib
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import (
    arrays,
    demo,
    fingerprint,
    folder,
    parquet,
    patterns,
    remote,
    tar,
)
from dinov2_jax.data.record import Record, Source
from dinov2_jax.data.walk import say

KINDS = ("folder", "tar", "parquet", "tfds", "arrayrecord", "demo")

WEIGHTED = re.compile(r"(.+?)(?<!\\)@(\d+(?:\.\d+)?)", re.DOTALL)
# tfds:NAME[/CONFIG][:VERSION][:SPLIT][@DATA_DIR]
TFDS = re.compile(r"([^:@]+(?::\d+\.\d+\.\d+)?)(?::([^@]+))?(?:@(.+))?")


class Mixture:
    """Several sources as one; their records are numbered one source after the other.

    Labels are kept where one source names the classes of all, in whatever order, else
    they are -1.
    """

    def __init__(self, sources: tuple[Source, ...], weights: tuple[float, ...]):
        """
        Args:
            sources: at least one.
            weights: share of each in training, > 0, of any sum.
        Raises: ValueError if their numbers differ or a weight is not positive.
        """
        if len(sources) != len(weights) or not sources:
            raise errors.InputError(
                f"{len(sources)} sources with {len(weights)} weights."
            )
        if min(weights) <= 0:
            raise errors.InputError(f"{weights=} must all be positive.")
        self.sources, self.weights = tuple(sources), tuple(weights)
        self.starts = np.cumsum([0, *map(len, sources)])
        self.classes = max((source.classes for source in sources), key=len)
        names, *each = (
            [unicodedata.normalize("NFC", name) for name in classes]
            for classes in (self.classes, *(source.classes for source in sources))
        )
        if not all({*some} <= {*names} for some in each):
            say(f"{len(sources)} sources of different classes are mixed without labels")
            self.classes = ()
        elif not all(source.classes for source in sources):
            self.classes = ()
        files = collections.Counter(
            path for source in sources for path in set(getattr(source, "files", ()))
        )
        twice = [path for path, count in files.items() if count > 1]
        if twice:
            say(f"files in several sources of a mixture: {patterns.named(twice)}")
        places = {name: number for number, name in enumerate(names)}
        self._labels = [[places.get(name, -1) for name in some] for some in each]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Record:
        which, inner = self._find(index)
        record = self.sources[which][inner]
        labelled = self.classes and record.label >= 0
        return Record(
            record.image, self._labels[which][record.label] if labelled else -1
        )

    def name(self, index: int) -> str:
        which, inner = self._find(index)
        return self.sources[which].name(inner)

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "mixture", self.weights, self.classes
        yield from map(fingerprint.of, self.sources)

    def _find(self, index: int) -> tuple[int, int]:
        """The number of a source, and the number of a record in it."""
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return which, int(index - self.starts[which])


class Subset:
    """Chosen records of a source, such as what curation kept; keeps their order."""

    def __init__(self, source: Source, ids: np.ndarray):
        """
        Args:
            source: where the records are.
            ids: [n] integers, record numbers in the source, n > 0.
        Raises: ValueError if ids are empty, not integers, or out of range.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
            raise errors.InputError(
                f"ids must be a non-empty list of record numbers, not {ids.shape} "
                f"{ids.dtype}."
            )
        if ids.min() < 0 or ids.max() >= len(source):
            raise errors.InputError(
                f"ids run from {ids.min()} to {ids.max()}, but the source has "
                f"{len(source)} records."
            )
        self.source, self.ids, self.classes = source, ids, source.classes

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.ids[index])]

    def name(self, index: int) -> str:
        return self.source.name(int(self.ids[index]))

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "subset"
        yield self.ids
        yield fingerprint.of(self.source)


def faults(source: Source | Mixture) -> list[str]:
    """What is wrong with the files of a source, apart from single records.

    Args:
        source: as `open_source` returns it.
    Returns: a line for each thing that is damaged, missing or contradictory.
    """
    if isinstance(source, Subset):
        return faults(source.source)
    if isinstance(source, Mixture):
        return [line for part in source.sources for line in faults(part)]
    return list(getattr(source, "faults", ()))


def open_source(
    spec: str, *, cache_dir: str | os.PathLike | None = None
) -> Source | Mixture:
    """The source that a spec names.

    Args:
        spec: one of
            folder:PATH
            tar:FILES
            parquet:FILES[?image=COLUMN&label=COLUMN]
            tfds:NAME[/CONFIG][:VERSION][:SPLIT][@DATA_DIR]
            arrayrecord:FILES, or a folder that `data pack` has made
            demo:train, demo:val
            or several of them, each with its weight: SPEC@3;SPEC@1. FILES are those
            of `patterns.find`. A path that exists as it is spelt, with ; or with
            @NUMBER at its end, is that path; \\; and \\@ are always part of one.
        cache_dir: where lists of files are kept between runs; None keeps none.
    Returns: a Source; a Mixture if the spec names several.
    Raises: ValueError if the kind is unknown or the source cannot be opened.
    """
    parts = split(spec)
    if not parts:
        raise errors.InputError(
            f"{spec!r} names no source; give one such as folder:PATH."
        )
    weights = tuple(weight for _, weight in parts)
    if min(weights) <= 0:
        raise errors.InputError(
            f"{spec!r} gives a source the weight 0; weights must be above 0: leave out "
            "what is not to be read."
        )
    opened = tuple(_readable(part, cache_dir) for part, _ in parts)
    return opened[0] if len(opened) == 1 else Mixture(opened, weights)


def _readable(spec: str, cache_dir) -> Source:
    """The source of one spec, or one line if the system refuses one of its files."""
    try:
        return _open(spec, cache_dir)
    except OSError as error:
        if error.errno in errors.FULL:
            raise errors.FileError(
                f"{spec}: {error.strerror} for the list of its files, in "
                f"{cache_dir or tempfile.gettempdir()}; free some space there."
            ) from error
        if isinstance(error, errors.Error) or not error.filename:
            raise
        raise errors.FileError(
            f"{spec}: {error.strerror} at {error.filename}; check the path and its "
            "permissions."
        ) from error


def split(spec: str) -> list[tuple[str, float]]:
    """The specs of single sources in one of several, and their weights.

    Args:
        spec: as for `open_source`.
    """
    pieces, parts = re.split(r"(?<!\\);", spec), []
    while pieces:
        # The longest that exists as it is spelt, else up to the next semicolon.
        for stop in range(len(pieces), 0, -1):
            text = ";".join(pieces[:stop]).strip()
            if stop == 1 or _exists(text) or _exists(_weighted(text)[0]):
                break
        del pieces[:stop]
        if _exists(text):
            parts.append((text, 1.0))
        elif text:
            text, weight = _weighted(text)
            parts.append((re.sub(r"\\([;@])", r"\1", text), weight))
    return parts


def _weighted(text: str) -> tuple[str, float]:
    """A spec without its weight, and the weight."""
    match = WEIGHTED.fullmatch(text)
    return (match[1], float(match[2])) if match else (text, 1.0)


def _exists(spec: str) -> bool:
    """Whether a spec names a path of this machine that exists as it is spelt."""
    kind, _, rest = spec.partition(":")
    if kind == "tfds":
        rest = rest.partition("@")[2]
    elif kind == "parquet":
        rest = parquet.columns(rest)[0]
    elif kind not in KINDS:
        return False
    return bool(rest) and not remote.is_remote(rest) and patterns.exists(rest)


def _open(spec: str, cache_dir) -> Source:
    """The source of one spec without a weight."""
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"did you mean {near[0]}:? Known" if near else "known"
        raise errors.InputError(
            f"unknown kind of source {kind!r} in {spec!r}; {hint} are "
            f"{', '.join(f'{kind}:' for kind in KINDS)}."
        )
    if not rest:
        raise errors.InputError(f"{spec!r} does not say which {kind} to open.")
    if kind == "folder":
        return folder.Folder(rest, cache_dir)
    if kind == "tar":
        return tar.Tar(rest, cache_dir)
    if kind == "parquet":
        return parquet.Parquet(*parquet.columns(rest))
    if kind == "arrayrecord":
        return arrays.ArrayRecords(rest)
    if kind == "demo":
        return demo.Demo(rest)
    match = TFDS.fullmatch(rest)
    if match is None:
        raise errors.InputError(
            f"{spec!r} is not tfds:NAME[:VERSION][:SPLIT][@DATA_DIR]."
        )
    return arrays.Tfds(match[1], match[2] or "train", match[3])
