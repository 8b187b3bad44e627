"""Opening the images that a spec names, one source or several by weight."""

import difflib
import os
import re
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import arrays, demo, fingerprint, folder, parquet, tar
from dinov2_jax.data.record import Record, Source

KINDS = ("folder", "tar", "parquet", "tfds", "arrayrecord", "demo")

# tfds:NAME[/CONFIG][:VERSION][:SPLIT][@DATA_DIR]
TFDS = re.compile(r"([^:@]+(?::\d+\.\d+\.\d+)?)(?::([^@]+))?(?:@(.+))?")


class Mixture:
    """Several sources as one; their records are numbered one source after the other.

    Labels are kept where all sources name the same classes, else they are -1.
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
        same = all(source.classes == sources[0].classes for source in sources)
        self.classes = sources[0].classes if same else ()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Record:
        source, index = self._find(index)
        record = source[index]
        return record if self.classes else Record(record.image, -1)

    def name(self, index: int) -> str:
        source, index = self._find(index)
        return source.name(index)

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "mixture", self.weights, self.classes
        yield from map(fingerprint.of, self.sources)

    def _find(self, index: int) -> tuple[Source, int]:
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sources[which], int(index - self.starts[which])


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


def open_source(
    spec: str, *, cache_dir: str | os.PathLike | None = None
) -> Source | Mixture:
    """The source that a spec names.

    Args:
        spec: one of
            folder:PATH
            tar:PATH_OR_PATTERN
            parquet:PATH_OR_PATTERN
            tfds:NAME[/CONFIG][:VERSION][:SPLIT][@DATA_DIR]
            arrayrecord:PATH_OR_PATTERN, or a folder that `data pack` has made
            demo:train, demo:val
            or several of them, each with its weight: SPEC@3;SPEC@1. A path that
            itself ends in @NUMBER needs a / or a weight behind it.
        cache_dir: where lists of files are kept between runs; None keeps none.
    Returns: a Source; a Mixture if the spec names several.
    Raises: ValueError if the kind is unknown or the source cannot be opened.
    """
    parts = [part.strip() for part in spec.split(";") if part.strip()]
    if not parts:
        raise errors.InputError(
            f"{spec!r} names no source; give one such as folder:PATH."
        )
    weighted = re.compile(r"(.+?)(?:@(\d+(?:\.\d+)?))?", re.DOTALL)
    matches = [weighted.fullmatch(part) for part in parts]
    opened = tuple(_open(match[1], cache_dir) for match in matches)
    weights = tuple(float(match[2] or 1) for match in matches)
    return opened[0] if len(opened) == 1 else Mixture(opened, weights)


def _open(spec: str, cache_dir) -> Source:
    """The source of one spec without a weight."""
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"did you mean {near[0]}:? " if near else ""
        raise errors.InputError(
            f"unknown kind of source {kind!r} in {spec!r}; {hint}Known are "
            f"{', '.join(f'{kind}:' for kind in KINDS)}."
        )
    if not rest:
        raise errors.InputError(f"{spec!r} does not say which {kind} to open.")
    if kind == "folder":
        return folder.Folder(rest, cache_dir)
    if kind == "tar":
        return tar.Tar(rest, cache_dir)
    if kind == "parquet":
        return parquet.Parquet(rest)
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
