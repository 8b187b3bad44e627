"""Large arrays whose memory is used again."""

import sys
import threading

import numpy as np


class Buffers:
    """uint8 arrays of one shape, made as they are needed and then used in turns.

    New memory comes in pages that the system fills with zeros first, which for a batch
    of images takes longer than copying them there. An array is free again when nothing
    refers to it any more, no part of it and no device that still copies from it.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape, self._made = shape, []
        self._lock = threading.Lock()

    def take(self) -> np.ndarray:
        """An array of the shape, with whatever was in it."""
        with self._lock:
            for array in self._made:
                # Known to the list, to this loop and to getrefcount; each view of it,
                # and each view of a view, would be one more.
                if sys.getrefcount(array) == 3:
                    return array[:]
            self._made.append(np.empty(self._shape, np.uint8))
            return self._made[-1][:]

    def __reduce__(self):
        return Buffers, (self._shape,)  # each process has its own
