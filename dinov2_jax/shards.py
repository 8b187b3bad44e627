"""Features on disk: a folder of shards that a later reader maps, never loads whole.

    OUT/manifest.json        what made them; a folder holds features of one making
    OUT/cls/00000.npy        [rows D], one file a kind and a shard
    OUT/index/00000.parquet  record, name, label, ok, shard, row; written last

A shard whose index is there is whole. Files of one that is being written end in .part;
its index holds the rows that are safe so far.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow
import pyarrow.parquet

from dinov2_jax import errors, writing


def claim(folder: pathlib.Path, manifest: Mapping) -> None:
    """Make the folder, or check that its rows were begun with the same manifest.

    A folder without rows is anyone's: what stopped an earlier start before its first
    row may be mended in the settings.

    Raises: ValueError that lists what differs.
    """
    path = folder / "manifest.json"
    folder.mkdir(parents=True, exist_ok=True)
    names = [file.name for file in folder.glob("index/*")]
    begun = any(name.endswith((".parquet", ".parquet.part")) for name in names)
    if begun and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(manifest))
        keys = [k for k in before | now if before.get(k) != now.get(k)]
        keys = [k for k in keys if k != "versions"]
        if keys:
            what = "; ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in keys)
            raise errors.InputError(
                f"{folder} holds features of another making ({what}); choose another "
                "--out, or remove it first."
            )
        return
    with writing.replacing(path, shared=True) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def missing(folder: pathlib.Path, first: int, last: int) -> list[tuple[int, int]]:
    """Ranges of shards in first..last-1 that are not whole, as (first, last)."""
    ranges: list[tuple[int, int]] = []
    for number in range(first, last):
        if _index(folder, number).exists():
            continue
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges


class Writer:
    """One shard; its rows come in parts, and lie on disk at once."""

    def __init__(self, folder: pathlib.Path, number: int, rows: int):
        """
        Args:
            folder: of `claim`.
            number: of the shard.
            rows: that it will have.
        """
        self.folder, self.number, self.rows = folder, number, rows
        self.arrays: dict[str, np.memmap] = {}
        self.columns: list[pyarrow.Table] = []
        self.done = 0

    def add(self, features: Mapping[str, np.ndarray], about: Mapping) -> None:
        """Append rows.

        Args:
            features: kind -> [n or more, ...]; what is beyond n is padding.
            about: record [n] int64, name [n], label [n] int, ok [n] bool; features of
                a row that is not ok are stored as zeros.
        """
        count = len(about["record"])
        for kind, rows in features.items():
            if kind not in self.arrays:
                path = _part(_array(self.folder, kind, self.number))
                path.parent.mkdir(exist_ok=True)
                self.arrays[kind] = _mapped(
                    path,
                    rows.dtype,
                    (self.rows, *rows.shape[1:]),
                )
            place = self.arrays[kind][self.done : self.done + count]
            place[:] = rows[:count]
            place[~about["ok"]] = 0
        where = {
            "shard": np.full(count, self.number, np.int32),
            "row": np.arange(self.done, self.done + count, dtype=np.int32),
        }
        self.columns.append(pyarrow.table(dict(about) | where))
        self.done += count

    def resume(self, kinds: Sequence[str]) -> None:
        """Take the rows that `begun` counted."""
        path = _part(_index(self.folder, self.number))
        self.columns = [_table(path)]
        self.done = len(self.columns[0])
        for kind in kinds:
            path = _part(_array(self.folder, kind, self.number))
            self.arrays[kind] = np.load(path, mmap_mode="r+")

    def save(self) -> None:
        """Keep the rows so far for a later `resume`."""
        for rows in self.arrays.values():
            rows.flush()
        path = _part(_index(self.folder, self.number))
        path.parent.mkdir(exist_ok=True)
        # Opened here, for Arrow takes no path that is not UTF-8.
        with writing.replacing(path) as part, part.open("wb") as file:
            pyarrow.parquet.write_table(pyarrow.concat_tables(self.columns), file)

    def close(self) -> None:
        """Place the files; the index last, so that it stands for all of them."""
        self.save()
        for kind in self.arrays:
            path = _array(self.folder, kind, self.number)
            os.replace(_part(path), path)
        path = _index(self.folder, self.number)
        os.replace(_part(path), path)


def _mapped(path: pathlib.Path, dtype: np.dtype, shape: tuple) -> np.memmap:
    """A new array in a file, on blocks that the disk has set aside for it.

    Raises: OSError if it has no room: written to later, the mapping would end the
        process without a word.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


class Rows:
    """Features of one kind over all shards, by row of the whole; mapped, not read."""

    def __init__(self, files: Sequence[pathlib.Path]):
        """`files`: the shards of a kind, in order."""
        self.parts = [np.load(file, mmap_mode="r") for file in files]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.dtype = self.parts[0].dtype
        self.shape = (int(self.ends[-1]), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        """The features of a row, a slice or an array of row numbers, in memory."""
        wanted = self._numbers(rows)
        flat = np.atleast_1d(wanted)
        found = np.empty((len(flat), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self.ends, flat, side="right")
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            start = self.ends[shard] - len(self.parts[shard])
            found[here] = self.parts[shard][flat[here] - start]
        return found.reshape(*wanted.shape, *self.shape[1:])

    def _numbers(self, rows) -> np.ndarray:
        """Row numbers from 0, whatever names them; costs no more than they are many."""
        if isinstance(rows, slice):
            return np.arange(*rows.indices(len(self)))
        wanted = np.asarray(rows)
        if wanted.dtype == bool:
            return np.arange(len(self))[wanted]
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if ((wanted < 0) | (wanted >= len(self))).any():
            raise IndexError(f"row {rows} of {len(self)}")
        return wanted

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """All rows in order, so many at once."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


def open_features(
    folder: str | os.PathLike,
) -> tuple[dict[str, Rows], pyarrow.Table, dict]:
    """(kind -> Rows, the index as a table with a line for each row, the manifest).

    Raises: ValueError if the folder holds no features, or not all of them yet.
    """
    folder = pathlib.Path(folder).expanduser()
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.InputError(
            f"{folder} holds no features ({error}); make them with dinov2-jax embed."
        ) from error
    shards = -(-manifest["records"] // manifest["shard_size"])
    left = sum(last - first for first, last in missing(folder, 0, shards))
    if left:
        raise errors.InputError(
            f"{left} of {shards} shards in {folder} are not written yet; run the same "
            "dinov2-jax embed again."
        )
    numbers = range(shards)
    tables = [_table(_index(folder, n)) for n in numbers]
    kinds = {
        kind: Rows([_array(folder, kind, n) for n in numbers])
        for kind in manifest["what"]
    }
    return kinds, pyarrow.concat_tables(tables), manifest


def _table(path: pathlib.Path) -> pyarrow.Table:
    """What a Parquet file holds."""
    with path.open("rb") as file:
        return pyarrow.parquet.read_table(file)


def begun(
    folder: pathlib.Path, manifest: Mapping, first: int, last: int
) -> dict[int, int]:
    """Rows of each of these shards that a stopped start left; removes what is of no use.

    Args:
        folder: of `claim`.
        manifest: its records, shard_size and what.
        first, last: shards first..last-1, which nobody else writes.
    Returns: number of a shard -> its rows, for `Writer.resume`.
    """
    rows = {}
    for path in sorted((folder / "index").glob("*.parquet.part")):
        number = int(path.name.partition(".")[0])
        if first <= number < last and not _index(folder, number).exists():
            count = _rows_begun(folder, manifest, number)
            rows |= {number: count} if count else {}
    for path in folder.glob("*/*.part"):
        with contextlib.suppress(ValueError):
            number = int(path.name.partition(".")[0])
            whole = path.name.endswith((".npy.part", ".parquet.part"))
            if first <= number < last and not (whole and number in rows):
                path.unlink()
    return rows


def _rows_begun(folder: pathlib.Path, manifest: Mapping, number: int) -> int:
    """Rows of an unfinished shard; 0 if its files do not fit together."""
    size = manifest["shard_size"]
    rows = min(size, manifest["records"] - number * size)
    try:
        count = len(_table(_part(_index(folder, number))))
        for kind in manifest["what"]:
            array = np.load(_part(_array(folder, kind, number)), mmap_mode="r")
            if len(array) != rows:
                return 0
        return count if count < rows else 0
    except (OSError, ValueError, EOFError, pyarrow.ArrowException):
        return 0


def _array(folder: pathlib.Path, kind: str, number: int) -> pathlib.Path:
    """File of a kind and a shard."""
    return folder / kind / f"{number:05}.npy"


def _index(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Index of a shard."""
    return folder / "index" / f"{number:05}.parquet"


def _part(path: pathlib.Path) -> pathlib.Path:
    """The name of a file while it is written."""
    return path.with_name(path.name + ".part")
