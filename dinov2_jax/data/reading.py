"""Reading one record, again where the failure may pass."""

import dataclasses
import time

from dinov2_jax import errors
from dinov2_jax.data import decode
from dinov2_jax.data.record import Record, Source

LONGEST = 5.0  # seconds between two attempts
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class Unreadable(errors.FileError):
    """A record that could not be read in as many attempts as are allowed."""

    def __init__(self, error: OSError, retries: int):
        super().__init__(f"{error} (given up after {retries + 1} attempts)")
        self.retries = retries


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the records of a source.

    Fields: `max_pixels` of the largest image that will be decoded; `attempts` at a
    record whose failure may pass, as that of a network may; `wait` seconds before the
    second attempt, doubled before each further one; `rules` as decode.decode.
    """

    source: Source
    max_pixels: int = decode.MAX_PIXELS
    attempts: int = 3
    wait: float = 0.1
    rules: decode.Rules = decode.RULES

    def record(self, index: int) -> tuple[Record, int]:
        """Record `index`, and how many reads were tried again.

        Raises: OSError if it cannot be read; Unreadable if it was tried again.
        """
        for retries in range(self.attempts):
            try:
                return self.source[index], retries
            except LASTING:
                raise
            except OSError as error:
                last = error
            if retries + 1 < self.attempts:
                time.sleep(min(self.wait * 2**retries, LONGEST))
        raise Unreadable(last, self.attempts - 1) from last
