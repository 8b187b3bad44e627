"""Label maps whose classes are numbered as those of another set."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dinov2_jax.data import dense
from dinov2_jax.data.pair import Pair


@dataclasses.dataclass(frozen=True)
class Renumbered:
    """Pairs whose labels are numbers among other classes."""

    pairs: dense.Pairs
    numbers: tuple[int, ...]  # of each class of the pairs
    classes: tuple[str, ...]  # that these number

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        image, target = self.pairs[index]
        return Pair(image, self._numbered(target))

    def target(self, index: int) -> np.ndarray:
        """[H W] the map alone, see `dense.Pairs.target`."""
        return self._numbered(self.pairs.target(index))

    def name(self, index: int) -> str:
        return self.pairs.name(index)

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "renumbered", self.numbers, self.classes
        yield from self.pairs.identity()

    def _numbered(self, target: np.ndarray) -> np.ndarray:
        """[H W] other numbers."""
        table = np.array([*self.numbers, dense.IGNORED], np.int32)  # -1 is the last
        return table[target]
