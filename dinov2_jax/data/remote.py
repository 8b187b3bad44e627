"""Files on this machine and behind a URL: finding them, and reading parts of them."""

import glob
import itertools
import os
import re
from typing import Any

from dinov2_jax import errors

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_remote(path: str) -> bool:
    """Whether a path is a URL such as gs://bucket/x.tar."""
    return "://" in path


def find(pattern: str) -> list[str]:
    """The files that a pattern names.

    Args:
        pattern: a path or URL with *, ? and [...], and with ranges: x-{000..127}.tar.
    Returns: them, sorted, without doubles; empty if there is none.
    Raises: ValueError if the kind of URL needs a package that is not installed.
    """
    found = set()
    for part in _ranges(pattern):
        if is_remote(part):
            system, path = opened(part)
            magic = glob.has_magic(path)
            paths = system.glob(path) if magic else [path] * system.exists(path)
            found |= {system.unstrip_protocol(path) for path in paths}
        else:
            found |= set(glob.glob(os.path.expanduser(part)))
    return sorted(found)


def _ranges(pattern: str) -> list[str]:
    """The patterns that ranges {a..b} stand for; numbers are as wide as a is."""
    pieces = RANGE.split(pattern)
    choices = [
        [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]
        for low, high in zip(pieces[1::3], pieces[2::3], strict=True)
    ]
    return [
        "".join(
            itertools.chain(*itertools.zip_longest(pieces[::3], some, fillvalue=""))
        )
        for some in itertools.product(*choices)
    ]


def opened(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path on it.

    Raises: ValueError if its package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise errors.InputError(
            f"{url} cannot be opened: {error}. For gs:// and s3://: "
            "pip install 'dinov2_jax[remote]'."
        ) from error


def version(path: str) -> str:
    """What changes when a file or folder changes: size and time of modification.

    Raises: OSError if it does not exist.
    """
    if not is_remote(path):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    system, inner = opened(path)
    known = system.info(inner)
    times = ("etag", "ETag", "mtime", "updated", "LastModified", "last_modified")
    return " ".join(str(known.get(key)) for key in ("size", *times))


def read(url: str, start: int, size: int) -> bytes:
    """Some bytes of a file behind a URL.

    Raises: OSError whatever goes wrong; each kind of storage has errors of its own.
    """
    system, path = opened(url)
    try:
        return system.cat_file(path, start=start, end=start + size)
    except OSError:
        raise
    except Exception as error:
        raise errors.FileError(f"{url} cannot be read: {error}") from error
