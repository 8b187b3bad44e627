"""The package's own errors: what the user can mend, said in one line.

The command line prints these as one line, since their text says what it got, what it
needs and what to do. Any other exception is a defect, here or in the user's own code,
and keeps its traceback. They remain a ValueError or an OSError to a caller in Python.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

FULL = {errno.ENOSPC, errno.EDQUOT}
"""Numbers of a disk that is full, or over its quota."""

FULL_TEXT = re.compile(r"No space left|[Dd]isk quota exceeded")
"""What libraries say of it whose errors carry no number."""


class Error(Exception):
    """What the command line shows without a traceback."""


class InputError(Error, ValueError):
    """A value, setting, file or data set that cannot be used."""


class ProcessTimeout(Error, TimeoutError):
    """A process that was waited for and did not come."""


class FileError(Error, OSError):
    """A file, disk, address or process that could not be read, written or reached."""


@contextlib.contextmanager
def at(path: str | os.PathLike, option: str = "") -> Iterator[None]:
    """What the system says of files at or below a path, as a `FileError`.

    A disk that is full counts whatever is written. An OSError of other files, or of
    none, passes as it is: it may come from the user's own code.

    Args:
        path: file or folder that the user named; "" or "-" of nothing.
        option: that named it, such as `--out`.
    """
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in FULL or FULL_TEXT.search(str(error))
        if isinstance(error, Error) or not (full or _below(error, path)):
            raise
        start = f"{option}={path}" if option else str(path)
        named = getattr(error, "filename", None)
        file = "" if named is None or _same(named, path) else f" at {os.fspath(named)}"
        what = getattr(error, "strerror", None) or "No space left on device"
        if isinstance(error, FileExistsError) and not os.path.exists(named):
            what = "a link to nothing"
        elif isinstance(error, FileExistsError) and not os.path.isdir(named):
            what = "Not a directory"  # os.makedirs met a file
        advice = (
            "free some space and re-run the same command"
            if full
            else "check the path and its permissions, or give another one"
        )
        raise FileError(f"{start}: {what}{file}; {advice}.") from error


def _below(error: Exception, path: str | os.PathLike) -> bool:
    """Whether an error names a path, one above or below it, or its temporary name."""
    if not isinstance(error, OSError):
        return False
    own = os.path.abspath(os.path.expanduser(path))
    for name in (error.filename, error.filename2):
        if isinstance(name, str | bytes | os.PathLike):
            file = os.path.abspath(os.fsdecode(name))
            if file == own or file.startswith(own.rstrip("/") + "/"):
                return True
            if own.startswith(file.rstrip("/") + "/"):  # a parent that cannot be made
                return True
            beside = os.path.dirname(file) == os.path.dirname(own)
            if beside and os.path.basename(own) in os.path.basename(file):
                return True
    return False


def _same(name: object, path: str | os.PathLike) -> bool:
    """Whether an error names the very path that the user gave."""
    return os.path.abspath(os.fsdecode(name)) == os.path.abspath(os.fspath(path))
