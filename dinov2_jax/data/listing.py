"""Long lists of file names: compact in memory, kept on disk between runs."""

import array
import dataclasses
import hashlib
import logging
import os
import pathlib
import zipfile
from collections.abc import Iterable

import numpy as np

log = logging.getLogger(__name__)


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


def save(path: pathlib.Path, listing: Listing, watched: Iterable[bytes]) -> None:
    """Writes a listing, with the state of the files and folders it was made from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    watched = list(watched)
    with open(temporary, "wb") as file:
        np.savez(
            file,
            blob=listing.blob,
            ends=listing.ends,
            labels=listing.labels,
            extra=listing.extra,
            classes=_packed(os.fsencode(name) for name in listing.classes),
            watched=_packed(watched),
            stamp=np.array(_stamp(watched)),
        )
    os.replace(temporary, path)


def load(path: pathlib.Path | None) -> Listing | None:
    """The listing kept in `path`; None if there is none that holds now.

    It does not hold if one of the files and folders it was made from has changed.
    """
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["stamp"]) != _stamp(_unpacked(kept["watched"])):
                return None
            classes = tuple(os.fsdecode(n) for n in _unpacked(kept["classes"]))
            fields = {key: kept[key] for key in ("blob", "ends", "labels", "extra")}
            return Listing(**fields, classes=classes)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("the kept list %s is made anew (%s)", path, error)
        return None


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
        status = os.stat(path)
        digest.update(path)
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()
