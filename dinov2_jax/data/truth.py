"""Ground truth of revisited Oxford and Paris: which image belongs to which query."""

import dataclasses
import json
import pathlib
import pickle
from typing import Any

import numpy as np

LISTS = ("easy", "hard", "junk")
SAFE = {
    ("_codecs", "encode"),  # this and the next: bytes in the older protocols
    ("__builtin__", "bytes"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}
"""What a pickle may name: the parts of arrays, numbers and bytes."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """Names without extension, and for each query numbers of database images."""

    images: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]  # left top right bottom
    lists: tuple[dict[str, tuple[int, ...]], ...]  # easy, hard, junk of each query


class _Plain(pickle.Unpickler):
    """Reads what holds nothing but values and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read(path: pathlib.Path) -> Truth:
    """The ground truth of a gnd_NAME.pkl as published, or of the same as JSON.

    Raises: ValueError if the file is missing, names anything but arrays and plain
        values, or is no ground truth.
    Source: https://github.com/filipradenovic/revisitop
    """
    try:
        if path.suffix == ".json":
            found = json.loads(path.read_text())
        else:
            with path.open("rb") as file:
                # Written by Python 2 in the published files.
                found = _Plain(file, encoding="latin1").load()
        return _checked(found)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    # Damaged pickles raise nearly every kind of error.
    except Exception as error:
        raise ValueError(
            f"{path} is no ground truth of revisited Oxford or Paris ({error!r}); give "
            "gnd_roxford5k.pkl, gnd_rparis6k.pkl or the same as JSON."
        ) from error


def _checked(found: Any) -> Truth:
    """The parts, with plain types."""
    images, queries = (tuple(map(str, found[k])) for k in ("imlist", "qimlist"))
    if len(found["gnd"]) != len(queries):
        raise ValueError(f"{len(found['gnd'])} answers to {len(queries)} queries")
    lists, boxes = [], []
    for one in found["gnd"]:
        numbers = {k: tuple(int(i) for i in np.ravel(one[k])) for k in LISTS}
        if any(not 0 <= i < len(images) for k in LISTS for i in numbers[k]):
            raise ValueError(f"an answer is no number below {len(images)}")
        lists.append(numbers)
        boxes.append(tuple(float(x) for x in np.ravel(one["bbx"])))
    if any(len(box) != 4 for box in boxes):
        raise ValueError("a box has not four numbers")
    return Truth(images, queries, tuple(boxes), tuple(lists))
