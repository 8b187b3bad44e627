"""Files on this machine and behind a URL, and reading parts of them."""

import os
from typing import Any

from dinov2_jax import errors


def is_remote(path: str) -> bool:
    """Whether a path is a URL such as gs://bucket/x.tar."""
    return "://" in path


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
