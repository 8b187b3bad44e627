"""A fingerprint of data: equal only where every record is still the same.

Files count by name, size and time of change, as a reader of millions of them can
afford; what lies in memory counts by all of its bytes.
"""

import concurrent.futures
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from dinov2_jax.data import decode, remote

THREADS = 16  # that ask for sizes and times; over a network each answer takes a while
CHUNK = 4096  # files that are asked about before their answers are used


class File(NamedTuple):
    """A file that records come from."""

    path: str | bytes  # or URL
    name: str | bytes = ""  # what it is called within the data; "" for its path


def of(data: Any) -> str:
    """The SHA-256 of what tells data from any other, or from itself before a change.

    Args:
        data: a source of records or pairs, whose `identity()` yields its Files and
            whatever else it consists of, such as names of classes; one without that
            method is read whole. Or a path, whose file is read whole.
    Returns: 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if isinstance(data, pathlib.Path):
        parts: Iterable = (_bytes_of(data),)
    elif hasattr(data, "identity"):
        parts = data.identity()
    else:
        parts = _records(data)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        parts = iter(parts)
        while chunk := list(itertools.islice(parts, CHUNK)):
            for part in pool.map(_stated, chunk):
                # Lengths keep neighbours apart: ("ab", "c") is not ("a", "bc").
                digest.update(f"{len(part)}:".encode())
                digest.update(part)
    return digest.hexdigest()


def _stated(part: Any) -> bytes | memoryview:
    """A part as bytes; a file as its name, size and time of change."""
    if isinstance(part, bytes):
        return part
    if isinstance(part, np.ndarray):
        return f"{part.dtype.str} {part.shape} ".encode() + part.tobytes()
    if not isinstance(part, File):
        return repr(part).encode(errors="surrogateescape")
    try:
        version = remote.version(os.fsdecode(part.path))
    except OSError as error:
        version = type(error).__name__  # whoever reads it says so in full
    return os.fsencode(part.name or part.path) + f"\0{version}".encode()


def _records(source: Any) -> Iterable:
    """Names, labels and bytes of all records of a source in memory."""
    yield len(source), getattr(source, "classes", ())
    for index in range(len(source)):
        yield source.name(index)
        try:
            record = source[index]
        except (OSError, decode.DecodeError) as error:
            yield type(error).__name__
            continue
        for value in record:
            yield value if isinstance(value, bytes | np.ndarray) else repr(value)


def _bytes_of(path: pathlib.Path) -> bytes:
    """The SHA-256 of a file's bytes; of none where it cannot be read."""
    try:
        with path.expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return type(error).__name__.encode()
