"""Ground truth of revisited Oxford and Paris: which image belongs to which query."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov2_jax import errors

LISTS = ("easy", "hard", "junk")


@dataclasses.dataclass(frozen=True)
class Truth:
    """Names without extension, and for each query numbers of database images."""

    images: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]  # left top right bottom
    lists: tuple[dict[str, tuple[int, ...]], ...]  # easy, hard, junk of each query


def of(found: Mapping[str, Any]) -> Truth:
    """The ground truth that the values of a file stand for.

    Args:
        found: imlist and qimlist, names; gnd, for each query bbx and LISTS.
    Raises: ValueError, TypeError or KeyError if they are none.
    Source: https://github.com/filipradenovic/revisitop
    """
    images, queries = (tuple(map(str, found[k])) for k in ("imlist", "qimlist"))
    if len(found["gnd"]) != len(queries):
        raise errors.InputError(
            f"{len(found['gnd'])} answers to {len(queries)} queries"
        )
    lists, boxes = [], []
    for one in found["gnd"]:
        numbers = {k: tuple(int(i) for i in np.ravel(one[k])) for k in LISTS}
        if any(not 0 <= i < len(images) for k in LISTS for i in numbers[k]):
            raise errors.InputError(f"an answer is no number below {len(images)}")
        lists.append(numbers)
        boxes.append(tuple(float(x) for x in np.ravel(one["bbx"])))
    if any(len(box) != 4 for box in boxes):
        raise errors.InputError("a box has not four numbers")
    return Truth(images, queries, tuple(boxes), tuple(lists))
