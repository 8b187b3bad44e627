"""Long lists of file names: compact in memory, kept on disk between runs."""

import array
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Listing:
    """n names in one block of bytes, with n labels and n columns of numbers.

    A million names of 40 characters take 60 MB; as str objects they would take
    twice that, and their pickle seconds for each worker process.
    """

    blob: np.ndarray  # [bytes] uint8, all names one after the other
    ends: np.ndarray  # [n+1] int64, name i is blob[ends[i]:ends[i+1]]
    labels: np.ndarray  # [n] int32, index into `classes`, -1 if none
    extra: np.ndarray  # [n C] int64, for the owner's use; C may be 0
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> bytes:
        """Name `index`, as the file system spells it."""
        return self.blob[self.ends[index] : self.ends[index + 1]].tobytes()


def build(entries: Iterable[tuple[bytes, tuple[int, ...]]], columns: int) -> Listing:
    """A listing whose classes are the first folders of the names.

    Args:
        entries: (name with / between folders, `columns` numbers), in their order.
        columns: C, numbers of an entry.
    Returns: the listing; names without a folder have label -1.
    """
    blob, ends = bytearray(), array.array("q", [0])
    labels, extra, found = array.array("i"), array.array("q"), {}
    for name, numbers in entries:
        blob += name
        ends.append(len(blob))
        extra.extend(numbers)
        folder, slash, _ = name.partition(b"/")
        labels.append(found.setdefault(folder, len(found)) if slash else -1)
    names = sorted(found)
    rank = np.empty(len(names) + 1, np.int32)
    rank[[found[name] for name in names]] = np.arange(len(names))
    rank[-1] = -1  # where label -1 looks
    return Listing(
        np.frombuffer(bytes(blob), np.uint8),
        np.array(ends, np.int64),
        rank[np.array(labels, np.int32)],
        np.array(extra, np.int64).reshape(len(labels), columns),
        tuple(os.fsdecode(name) for name in names),
    )


def cache_path(cache_dir: str | os.PathLike | None, *key: str) -> pathlib.Path | None:
    """The file in which the listing of `key` is kept; None without a cache_dir."""
    if cache_dir is None:
        return None
    digest = hashlib.sha256("\0".join(key).encode(errors="surrogateescape"))
    return pathlib.Path(cache_dir) / f"listing-{digest.hexdigest()[:16]}.npz"


def save(path: pathlib.Path, listing: Listing, stamp: str) -> None:
    """Writes a listing, with the stamp of the files that it was made from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    classes = b"\0".join(os.fsencode(name) for name in listing.classes)
    with open(temporary, "wb") as file:
        np.savez(
            file,
            blob=listing.blob,
            ends=listing.ends,
            labels=listing.labels,
            extra=listing.extra,
            classes=np.frombuffer(classes, np.uint8),
            stamp=np.array(stamp),
        )
    os.replace(temporary, path)


def load(path: pathlib.Path | None, stamp: str) -> Listing | None:
    """The listing kept in `path`, or None if there is none with this stamp."""
    if path is None or not path.exists():
        return None
    with np.load(path, allow_pickle=False) as kept:
        if str(kept["stamp"]) != stamp:
            return None
        names = kept["classes"].tobytes()
        classes = tuple(os.fsdecode(n) for n in names.split(b"\0")) if names else ()
        fields = {key: kept[key] for key in ("blob", "ends", "labels", "extra")}
        return Listing(**fields, classes=classes)


def stamp(paths: Iterable[str | bytes]) -> str:
    """A digest of the names, sizes and modification times of files or folders."""
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        digest.update(os.fsencode(path))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
