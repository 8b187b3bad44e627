"""Long lists of file names: on disk, mapped into memory, kept between runs.

A list of a million names takes no memory of the process, and none for each worker:
its file is mapped, and pickling a list sends the name of its file.
"""

import array
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np

from dinov2_jax import errors, escaping
from dinov2_jax.data import remote, walk

log = logging.getLogger(__name__)
FLUSH = 1 << 16  # entries that are held in memory while a list is made

# Name with / between folders, numbers for the owner's use, label; None for the label
# takes the first folder as the class.
Entry = tuple[bytes, tuple[int, ...], int | None]


@dataclasses.dataclass(frozen=True)
class Listing:
    """n names in one block of bytes, with n labels and n rows of numbers."""

    file: pathlib.Path
    stamp: str  # of what was listed
    blob: np.ndarray  # [bytes] uint8, all names one after the other
    ends: np.ndarray  # [n+1] int64, name i is blob[ends[i]:ends[i+1]]
    labels: np.ndarray  # [n] int32, index into `classes`, -1 if none
    extra: np.ndarray  # [n C] int64, for the owner's use; C may be 0
    classes: tuple[str, ...]
    ignored: walk.Ignored  # what was left out when it was made
    notes: tuple[str, ...]  # on what was listed, for people

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self):
        return _again, (self.file, self.stamp)

    def path(self, index: int) -> bytes:
        """Name `index`, as the file system spells it."""
        return self.blob[self.ends[index] : self.ends[index + 1]].tobytes()


def build(
    entries: Iterable[Entry],
    columns: int,
    watched: Sequence[bytes],
    file: pathlib.Path | None,
    ignored: walk.Ignored,
    notes: Sequence[str] = (),
) -> Listing:
    """A listing in a file of its own, written whole or not at all.

    Args:
        entries: in their order; read once, while `watched` and `notes` may still grow.
        columns: C, numbers of an entry.
        watched: files and folders that it was made from; a change of one ends it.
        file: where it is kept; None: for the life of this process, as where something
            was passed over that may be mended without a change of what is watched.
        ignored: what is left out, known once the entries are read.
        notes: lines that are kept with it.
    Returns: the listing. Labels are classes in the order of their names; where entries
        give labels, classes are their numbers.
    """
    file = _scratch() if file is None else file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".listing") as folder:
        spool = pathlib.Path(folder)
        names = _spooled(spool, entries, columns)
        if not (spool / "labels").stat().st_size or ignored.mendable:
            file = _scratch()  # there is nothing to keep
        whole = spool / "whole.npz"
        with open(whole, "wb") as out:
            np.savez(
                out,
                **{kind: _mapped(spool / kind, dtype) for kind, dtype in KINDS.items()},
                columns=np.array(columns),
                classes=_packed(name.encode() for name in names),
                watched=_packed(watched),
                stamp=np.array(_stamp(watched)),
                ignored=np.array(ignored.json()),
                notes=_packed(line.encode() for line in notes),
            )
        shutil.move(whole, file)  # _scratch may lie on another disk
    return _opened(file)


def cache_path(cache_dir: str | os.PathLike | None, *key: str) -> pathlib.Path | None:
    """The file in which the listing of `key` is kept; None without a cache_dir."""
    if cache_dir is None:
        return None
    digest = hashlib.sha256("\0".join(key).encode(errors="surrogateescape"))
    return pathlib.Path(cache_dir) / f"listing-{digest.hexdigest()[:16]}.npz"


def load(file: pathlib.Path | None) -> Listing | None:
    """The listing kept in `file`; None if there is none that holds now.

    It does not hold if one of the files and folders it was made from has changed.
    """
    if file is None or not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["stamp"]) != _stamp(_unpacked(kept["watched"])):
                return None
        return _opened(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("the kept list %s is made anew (%s)", file, error)
        return None


KINDS = {"blob": np.uint8, "ends": np.int64, "labels": np.int32, "extra": np.int64}


def _spooled(folder: pathlib.Path, entries: Iterable[Entry], columns: int) -> list[str]:
    """Writes a file of each of KINDS; returns the names of the classes, sorted."""
    found: dict[bytes, int] = {}
    end, largest = 0, -1
    parts = {"ends": array.array("q", [0]), "labels": array.array("i")}
    parts |= {"extra": array.array("q"), "blob": bytearray()}

    def flush():
        for kind, part in parts.items():
            with open(folder / kind, "ab") as file:
                file.write(part)
            del part[:]

    for name, numbers, label in entries:
        end += len(name)
        parts["blob"] += name
        parts["ends"].append(end)
        parts["extra"].extend(numbers)
        if label is None:
            first, slash, _ = name.partition(b"/")
            # Below -1: a folder, whose number is known when all are found.
            label = -2 - found.setdefault(first, len(found)) if slash else -1
        else:
            largest = max(largest, label)
        parts["labels"].append(label)
        if len(parts["labels"]) == FLUSH:
            flush()
    flush()
    folders = {number: escaping.normalized(name) for name, number in found.items()}
    names = sorted(set(folders.values()))
    places = {name: place for place, name in enumerate(names)}
    rank = np.full(len(folders) + 1, -1, np.int32)  # the last: where there is no folder
    if largest < 0:
        rank[:-1] = [places[folders[number]] for number in range(len(folders))]
    labels = _mapped(folder / "labels", np.int32, "r+")
    for start in range(0, len(labels), FLUSH):
        part = labels[start : start + FLUSH]
        ranks = rank[-2 - np.minimum(part, -1)]
        labels[start : start + FLUSH] = np.where(part < 0, ranks, part)
    if largest >= 0:
        return [str(number) for number in range(largest + 1)]
    return names


def _mapped(file: pathlib.Path, dtype, mode: str = "r") -> np.ndarray:
    """[n] of a raw file; a file without a byte cannot be mapped."""
    if not file.stat().st_size:
        return np.empty(0, dtype)
    return np.memmap(file, dtype, mode)


def _opened(file: pathlib.Path) -> Listing:
    """The listing in a file, its large arrays mapped where they lie in it."""
    with np.load(file, allow_pickle=False) as kept, zipfile.ZipFile(file) as members:
        names = [name.decode() for name in _unpacked(kept["classes"])]
        ignored = walk.Ignored(str(kept["ignored"]))
        columns, stamp = int(kept["columns"]), str(kept["stamp"])
        notes = tuple(line.decode() for line in _unpacked(kept["notes"]))
        arrays = {}
        for kind, dtype in KINDS.items():
            with members.open(f"{kind}.npy") as member:
                np.lib.format.read_magic(member)
                (size,), *_ = np.lib.format.read_array_header_1_0(member)
                header = member.tell()
            info = members.getinfo(f"{kind}.npy")
            with open(file, "rb") as raw:  # a local header has lengths of its own
                raw.seek(info.header_offset + 26)
                lengths = np.frombuffer(raw.read(4), "<u2")
            start = info.header_offset + 30 + int(lengths.sum()) + header
            empty = np.empty(0, dtype)
            arrays[kind] = np.memmap(file, dtype, "r", start, size) if size else empty
    rows = len(arrays["labels"])
    arrays["extra"] = arrays["extra"].reshape(rows, columns)
    return Listing(
        file, stamp, **arrays, classes=tuple(names), ignored=ignored, notes=notes
    )


def _again(file: pathlib.Path, stamp: str) -> Listing:
    """A listing in another process. Raises: OSError if its file is another by now."""
    found = _opened(file)
    if found.stamp != stamp:
        raise errors.FileError(
            f"{file} was made anew while it was in use; start again."
        )
    return found


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """A folder that lives as long as this process."""
    return tempfile.TemporaryDirectory(prefix="listings-")


def _scratch() -> pathlib.Path:
    """A new file name for a listing that is not kept."""
    handle, name = tempfile.mkstemp(".npz", dir=_folder().name)
    os.close(handle)
    return pathlib.Path(name)


def _packed(names: Iterable[bytes]) -> np.ndarray:
    """[bytes] uint8 of names, which hold no zero."""
    return np.frombuffer(b"".join(name + b"\0" for name in names), np.uint8)


def _unpacked(blob: np.ndarray) -> list[bytes]:
    """The names of `_packed`."""
    return blob.tobytes().split(b"\0")[:-1]


def _stamp(paths: Iterable[bytes]) -> str:
    """A digest of the names, sizes and modification times of files or folders."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path)
        digest.update(f"\0{remote.version(os.fsdecode(path))}\0".encode())
    return digest.hexdigest()
