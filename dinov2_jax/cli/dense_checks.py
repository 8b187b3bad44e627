"""What is looked at before a head is trained: every map that will be needed.

Photographs and maps of the validation set are read whole, of the training set the maps
and the headers of the photographs (the first whole; all if corrupt ones are refused), at
most `check_limit` of them. So a file that cannot be used, or a setting that does not fit
the files, costs no training.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from dinov2_jax import errors
from dinov2_jax.cli import doubts, setting
from dinov2_jax.cli.results import Job
from dinov2_jax.cli.setting import Setting
from dinov2_jax.data import dense, dense_batches
from dinov2_jax.evals import depth
from dinov2_jax.train import progress

SETTINGS = setting.Table(
    check_limit=Setting(
        25_000,
        "maps of train that are read before the training; 0 for all",
        setting.WHOLE,
    ),
)


def labels(job: Job, named: bool) -> None:
    """Read label maps and count their classes.

    Args:
        job: its inputs are of `dense.open_labels`, without train for a head that is not
            trained.
        named: whether the user named the classes, so that each should occur.
    Raises: ValueError if a pair cannot be used, no pixel has a label, or a named class
        occurs in neither set.
    """
    s, train, val = job.settings, job.inputs.get("train"), job.inputs["val"]
    count = len(val.classes)

    def counted(target: np.ndarray) -> np.ndarray:
        """[K + 1] pixels of each class, and of those that are ignored."""
        return np.bincount(target.ravel() + 1, minlength=count + 1)

    in_val = _read("val", val, s, counted).sum(0)
    in_train = np.zeros_like(in_val)
    if train is not None:
        in_train = _read("train", train, s, counted).sum(0)
    _require_labels({"train": in_train, "val": in_val}, train is not None, s, named)
    doubts.of_one_class(job, "labelled pixels of val", in_val[1:], val.classes)
    lacking = in_train[1:] + in_val[1:] == 0
    whole = train is not None and len(_numbers("train", train, s)) == len(train)
    if lacking.any():
        names = _some(val.classes, lacking)
        told = f"{lacking.sum()} of {count} classes occur in no map of train and val: "
        if named and whole and not s.absent_classes:
            raise errors.InputError(
                f"{told}{names}. Check the maps, their ids (first_id, ignore_id, ids) and "
                "the names, or set absent_classes=true if none of them is wrong."
            )
        job.warn(f"{told}{names}")
    unseen = (in_train[1:] == 0) & (in_val[1:] > 0)
    if whole and unseen.any():
        job.warn(
            f"{unseen.sum()} of {count} classes occur in val and not in train, and "
            f"cannot be learnt: {_some(val.classes, unseen)}"
        )


def _require_labels(found: dict[str, np.ndarray], both: bool, s: Any, named: bool):
    """Raises ValueError for sets without labels, or whose foreground is ignored."""
    total = sum(found.values())
    hint = (
        f"Pixels of id {s.ignore_id} (ignore_id) and below {s.first_id} (first_id) are "
        "ignored; masks of 0 and 255 need ids=0:0,255:1."
    )
    for split, pixels in found.items():
        if not pixels[1:].any() and (both or split == "val"):
            raise errors.InputError(f"No pixel of {split} has a label. {hint}")
    one = np.flatnonzero(total[1:])
    # Layouts that are known ignore what they should; masks of one's own may not.
    if len(one) == 1 and total[0] and not s.ids and (named or s.classes):
        raise errors.InputError(
            f"All labelled pixels are of one class, number {one[0]}, and "
            f"{100 * total[0] / total.sum():.0f} % are ignored. {hint}"
        )


class _Known(NamedTuple):
    """Pixels of a depth map."""

    known: int
    counted: int  # in the range, and the part of the image that is used
    beyond: int  # farther than the range


def depths(job: Job, border: tuple[int, int, int, int] | None) -> int:
    """Read depth maps and count what is known in the range.

    Args:
        job: its inputs are of `dense.open_depth`, without train for a head that is not
            trained.
        border: (top, bottom, left, right) that is kept in training, or None.
    Returns: the number of validation images without a pixel that counts.
    Raises: ValueError if a pair cannot be used, the border or eval_crop does not fit, or
        nothing is known.
    """
    s, train, val = job.settings, job.inputs.get("train"), job.inputs["val"]

    def judged(target: np.ndarray) -> _Known:
        inside = depth.inside(target.shape, s.eval_crop)
        counted = (target > s.min_depth) & (target < s.max_depth) & inside
        return _Known(
            np.count_nonzero(target),
            np.count_nonzero(counted),
            np.count_nonzero(target >= s.max_depth),
        )

    def learnt(target: np.ndarray) -> _Known:
        if border is not None:
            target = _within(target, border)
        beyond, known = np.count_nonzero(target > s.max_depth), np.count_nonzero(target)
        return _Known(known, known - beyond, beyond)

    found = {"val": _read("val", val, s, judged)}
    if train is not None:
        found["train"] = _read("train", train, s, learnt)
    for split, rows in found.items():
        total = _Known(*rows.sum(0))
        if not total.counted:
            raise errors.InputError(
                f"No pixel of {split} has a known depth in the range and the crop "
                f"({total.known} are known, {total.beyond} of them beyond max_depth="
                f"{s.max_depth}); check scale, min_depth, max_depth and eval_crop."
            )
        if 2 * total.beyond > total.known:
            job.warn(
                f"{100 * total.beyond / total.known:.0f} % of what is known in {split} is "
                f"beyond max_depth={s.max_depth} and does not count; check scale="
                f"{s.scale}"
            )
    return int((found["val"][:, 1] == 0).sum())


def _within(target: np.ndarray, border: tuple[int, int, int, int]) -> np.ndarray:
    """The part of a map that training keeps."""
    top, bottom, left, right = border
    height, width = target.shape
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise errors.InputError(
            f"border={border} does not lie in images of {height}x{width} pixels; set it "
            "to (0, 0, 0, 0) to keep all."
        )
    return target[top:bottom, left:right]


def _read(split: str, source: dense.Pairs, s: Any, look: Callable) -> np.ndarray:
    """[n ...] int64, what `look` makes of each map that is read.

    Raises: ValueError that counts the pairs that cannot be used and says why of one.
    """
    numbers, bad, found = _numbers(split, source, s), [], []

    def one(index: int) -> Any:
        try:
            # A photograph that fails would end the task late.
            whole = split == "val" or s.damaged == "skip" or index == numbers[0]
            return look(source[index].target if whole else source.target(index))
        except errors.InputError as error:
            name, told = source.name(index), str(error)
            return told if name in told else f"{name}: {told}"

    out = progress.NOWHERE if jax.process_index() else None
    shown = progress.Progress(0, len(numbers), out, "map")
    with contextlib.closing(dense_batches.read(numbers, one, s.threads)) as made:
        for done, result in enumerate(made, 1):
            (bad if isinstance(result, str) else found).append(result)
            shown.update(done)
    if bad:
        more = f" (and {len(bad) - 1} more of {len(numbers)})" if len(bad) > 1 else ""
        raise errors.InputError(f"{split}{more}: {bad[0]}")
    shown.show(len(numbers), f"of {len(source)} of {split} are sound")
    return np.array(found, np.int64)


def _numbers(split: str, source: dense.Pairs, s: Any) -> list[int]:
    """Numbers of the pairs that are read, evenly spread."""
    limit = s.limit if split == "val" else s.check_limit
    return dense_batches.spread(len(source), limit)


def _some(names: tuple[str, ...], chosen: np.ndarray) -> str:
    """The first few of the names that are chosen."""
    found = [names[i] for i in np.flatnonzero(chosen)]
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
