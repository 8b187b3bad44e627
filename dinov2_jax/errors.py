"""The package's own errors: what the user can mend, said in one line.

The command line prints these as one line, since their text says what it got, what it
needs and what to do. Any other exception is a defect, here or in the user's own code,
and keeps its traceback. They remain a ValueError or an OSError to a caller in Python.
"""


class Error(Exception):
    """What the command line shows without a traceback."""


class InputError(Error, ValueError):
    """A value, setting, file or data set that cannot be used."""


class ProcessTimeout(Error, TimeoutError):
    """A process that was waited for and did not come."""


class FileError(Error, OSError):
    """A file, disk, address or process that could not be read, written or reached."""
