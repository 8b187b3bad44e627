"""KITTI's crop: the part of its photographs that depth is learnt from and judged on."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.pair import Pair

SIZE = (352, 1216)  # pixels, height and width


@dataclasses.dataclass(frozen=True)
class Cropped:
    """Pairs of which the middle of the bottom, SIZE, is kept.

    Source: KBCrop and `eval_kb_crop` of the Monocular-Depth-Estimation-Toolbox, which
    the reference's depth heads are trained with.
    """

    pairs: Any  # dense.Pairs, or what stands in its place

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pairs.classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        """Raises ValueError, naming the file, if one cannot be used."""
        image, target = self.pairs[index]
        part = self._part(target.shape, index)
        return Pair(image[part], target[part])

    def target(self, index: int) -> np.ndarray:
        """[h w] the map alone, see `dense.Pairs.target`."""
        target = self.pairs.target(index)
        return target[self._part(target.shape, index)]

    def name(self, index: int) -> str:
        return self.pairs.name(index)

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "kitti's crop", SIZE
        yield from self.pairs.identity()

    def _part(self, shape: tuple[int, int], index: int) -> tuple[slice, slice]:
        """Rows and columns that are kept."""
        top, left = shape[0] - SIZE[0], (shape[1] - SIZE[1]) // 2
        if min(top, left) < 0:
            raise errors.InputError(
                f"{self.name(index)} has {shape[0]}x{shape[1]} pixels; KITTI's crop keeps "
                f"{SIZE[0]}x{SIZE[1]}: give larger images, or set kb_crop=false."
            )
        return slice(top, top + SIZE[0]), slice(left, left + SIZE[1])
