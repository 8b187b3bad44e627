"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path, shared: bool = False) -> Iterator[pathlib.Path]:
    """The name to write a file under; the file takes the place of `path` in the end.

    Where writing fails, what was written is removed and `path` stays as it was. What a
    killed process leaves is overwritten by the next one.

    Args:
        path: the file.
        shared: several processes may write it at once, each under a name of its own.
    """
    own = f".{os.getpid()}" if shared else ""
    part = path.with_name(f"{path.name}{own}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check(path: pathlib.Path) -> None:
    """Try whether a file can be written there; leaves nothing.

    Args:
        path: the file; it and its folder need not exist.
    Raises: OSError, as writing it would.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    near = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=near).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
