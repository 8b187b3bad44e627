"""One image of a data set, and what every source of images offers."""

from typing import NamedTuple, Protocol

import numpy as np

CLASSES = 1 << 22  # numbers that a label may have: each is a name in memory


class Record(NamedTuple):
    """One image and its class."""

    image: bytes | np.ndarray  # an encoded file, or [H W 3] uint8 RGB
    label: int  # -1 if there is none


class Source(Protocol):
    """Images by number; picklable, so that worker processes can read it too."""

    classes: tuple[str, ...]  # names of the labels, empty if they have none

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str:
        """Where record `index` comes from, `escaped`: one line of plain text."""
        ...
