"""Large arrays whose memory is used again."""

import sys
import threading

import numpy as np


class Buffers:
    """uint8 arrays of one shape, made as they are needed and then used in turns.

    New memory comes in pages that the system fills with zeros first, which for a batch
    of images takes longer than copying them there. An array is free again when nothing
    refers to it any more, no part of it and no device that still copies from it. As
    many are kept as were ever held at once.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape, self._made = shape, []
        self._lock = threading.Lock()
        alone = [np.empty(0)]
        self._alone = sys.getrefcount(alone[0])

    def take(self) -> np.ndarray:
        """An array of the shape, with whatever was in it."""
        with self._lock:
            for number in range(len(self._made)):
                # Each view of an array, and each view of a view, refers to it.
                if sys.getrefcount(self._made[number]) == self._alone:
                    return self._made[number][:]
            self._made.append(np.empty(self._shape, np.uint8))
            return self._made[-1][:]

    def __reduce__(self):
        return Buffers, (self._shape,)  # each process has its own
