"""Fourteen photographs and a small recognition task cut from them, for trying out.

ATTRIBUTION.md beside this file says where they come from and under which licence.
"""

import functools
import pathlib
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import decode
from dinov2_jax.data.record import Record

FOLDER = pathlib.Path(__file__).parent
TILE = 96  # pixels, side of a tile
GRIDS = {"train": (8, 8), "val": (6, 4)}  # tiles (down, across) of each photograph


class Demo:
    """Tiles of fourteen photographs; which photograph it is, is the label.

    `train` is cut from the left two thirds of each photograph, as it is. `val` is cut
    from the right third, in gray and with another brightness and contrast for each
    tile: k-NN on raw pixels or colour histograms then stays near chance, so that what
    is recognised is structure.
    """

    def __init__(self, split: str):
        """
        Args:
            split: train (896 tiles) or val (336 tiles).
        Raises: ValueError for another split.
        """
        if split not in GRIDS:
            raise errors.InputError(
                f"demo:{split} does not exist; there are demo:train and demo:val."
            )
        self.split = split
        self.classes = tuple(sorted(path.stem for path in FOLDER.glob("*.jpg")))

    def __len__(self) -> int:
        rows, columns = GRIDS[self.split]
        return len(self.classes) * rows * columns

    def __getitem__(self, index: int) -> Record:
        label, top, left = self._place(index)
        tile = photograph(self.classes[label])[top : top + TILE, left : left + TILE]
        return Record(_disguised(tile, index) if self.split == "val" else tile, label)

    def name(self, index: int) -> str:
        label, top, left = self._place(index)
        return f"demo:{self.split} {self.classes[label]} at {top},{left}"

    @property
    def labels(self) -> np.ndarray:
        """[n] of all tiles."""
        return np.array([self._place(i)[0] for i in range(len(self))])

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "demo", self.split, TILE, GRIDS[self.split]
        for name in self.classes:
            yield name
            yield (FOLDER / f"{name}.jpg").read_bytes()

    def _place(self, index: int) -> tuple[int, int, int]:
        """(label, top, left) of a tile."""
        rows, columns = GRIDS[self.split]
        label, cell = divmod(int(index), rows * columns)
        row, column = divmod(cell, columns)
        height, width, _ = photograph(self.classes[label]).shape
        cut = width * 2 // 3
        first, end = (0, cut) if self.split == "train" else (cut, width)
        top = round(row * (height - TILE) / (rows - 1))
        return label, top, first + round(column * (end - first - TILE) / (columns - 1))


@functools.cache
def photograph(name: str) -> np.ndarray:
    """One photograph, decoded once a process.

    Args:
        name: one of Demo("train").classes.
    Returns: [H W 3] uint8 RGB, not to be written to.
    """
    image = decode.decode((FOLDER / f"{name}.jpg").read_bytes())
    image.flags.writeable = False
    return image


def stereo() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair of photographs with the depth of every pixel, from scikit-image.

    It is read from that package and not copied: the package names its authors
    (Scharstein et al., GCPR 2014) but no licence to pass it on.

    Returns: left and right [H W 3] uint8 RGB; [H W] float32 disparity in pixels, NaN
        where unknown. Depth in mm is 193.001 * 994.978 / (disparity + 31.086).
    Raises: ValueError if scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise errors.InputError(
            "the stereo pair comes with scikit-image; pip install scikit-image."
        ) from error
    left, right, disparity = skimage.data.stereo_motorcycle()
    disparity = np.where(np.isfinite(disparity), disparity, np.nan)
    return left, right, disparity.astype(np.float32)


def _disguised(tile: np.ndarray, index: int) -> np.ndarray:
    """The tile in gray, with a contrast and mean brightness drawn for its number."""
    rng = np.random.default_rng(index)
    gray = tile.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    contrast, level = rng.uniform(0.8, 1.2), rng.uniform(110, 140)
    gray = np.clip((gray - gray.mean()) * contrast + level, 0, 255)
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
