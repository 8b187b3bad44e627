"""Retrieval: how well the nearest images of a query are the ones it belongs to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dinov2_jax import errors

PRECISIONS = (1, 5, 10)  # ranks whose precision the revisited protocol reports
LEVELS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Level of the revisited protocol -> (lists that count, lists that are taken out)."""


class Ranked(NamedTuple):
    """The whole database by similarity to one query."""

    query: int
    ids: np.ndarray  # [m] int, most similar first; of equals, the first one first
    dots: np.ndarray  # [m] float32, falling


def rankings(
    queries: np.ndarray,
    database: np.ndarray,
    *,
    without_self: bool = False,
    block: int = 64,
) -> Iterator[Ranked]:
    """The database ranked for each query.

    Args:
        queries: [n D] float32, of unit length.
        database: [m D] float32, of unit length.
        without_self: queries are the database's rows; leave each out of its own list.
        block: queries at once; memory grows with block * m.
    """
    for start in range(0, len(queries), block):
        dots = queries[start : start + block] @ database.T
        for row, found in enumerate(dots):
            ids = np.argsort(-found, kind="stable")
            if without_self:
                ids = ids[ids != start + row]
            yield Ranked(start + row, ids, found[ids])


def average_precision(relevant: np.ndarray, total: int | None = None) -> float:
    """Mean over the relevant items of the precision at their rank.

    Args:
        relevant: [m] bool, by rank.
        total: relevant items there are; None for those in the list.
    Returns: in [0, 1]; NaN if there is none to find.
    """
    places = np.flatnonzero(relevant)
    total = len(places) if total is None else total
    if not total:
        return float("nan")
    return float((np.arange(1, len(places) + 1) / (places + 1)).sum() / total)


def trapezoid_precision(places: np.ndarray, total: int) -> float:
    """Area under precision over recall, by trapezoids, as revisited Oxford counts it.

    Args:
        places: [p] ranks from 0 of the relevant items, rising.
        total: relevant items there are, > 0.
    Source: arXiv:1803.11285, the published `compute_ap`.
    """
    places = np.asarray(places, np.float64)
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    return float(((before + (found + 1) / (places + 1)) / 2).sum() / total)


def revisited(
    ranked: Iterable[Ranked], truth: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, float]:
    """mAP and mean precisions of revisited Oxford or Paris.

    Args:
        ranked: one a query.
        truth: for each query `easy`, `hard` and `junk`: numbers of database images.
    Returns: `map_easy`, `mp1_easy`, ...: queries that have nothing to find on a level
        are left out of its means.
    Raises: ValueError if no query has anything to find.
    Source: arXiv:1803.11285 section 3.
    """
    found: dict[str, list[float]] = {}
    for one in ranked:
        lists = truth[one.query]
        for level, (good, bad) in LEVELS.items():
            wanted = np.concatenate([np.asarray(lists[k], np.int64) for k in good])
            if not len(wanted):
                continue
            junk = np.concatenate([np.asarray(lists[k], np.int64) for k in bad])
            kept = one.ids[~np.isin(one.ids, junk)]
            places = np.flatnonzero(np.isin(kept, wanted))
            area = trapezoid_precision(places, len(wanted))
            found.setdefault(f"map_{level}", []).append(area)
            for k in PRECISIONS:
                # Never more than there is to find: a short list can be perfect.
                top = min(int(places.max(initial=0)) + 1, k)
                value = float((places < top).sum() / top)
                found.setdefault(f"mp{k}_{level}", []).append(value)
    if not found:
        raise errors.InputError(
            "No query has an image to find; check the ground truth."
        )
    return {name: float(np.mean(values)) for name, values in found.items()}


def by_label(
    ranked: Iterable[Ranked],
    query_labels: np.ndarray,
    labels: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    each: Callable[[Ranked, float], None] | None = None,
) -> dict[str, float]:
    """mAP and recall@k where images of one label belong together.

    Args:
        ranked: one a query.
        query_labels: [n] int.
        labels: [m] int, of the database.
        ks: ranks.
        each: called with every ranking and its average precision, NaN if none.
    Returns: `map`, and `recall_at_K`: the share of queries with one of its own among
        the first K; and `queries` that have anything to find, over which both go.
    Raises: ValueError if no query has.
    """
    areas, firsts = [], []
    for one in ranked:
        relevant = labels[one.ids] == query_labels[one.query]
        area = average_precision(relevant)
        if each is not None:
            each(one, area)
        if np.isfinite(area):
            areas.append(area)
            firsts.append(int(relevant.argmax()))
    if not areas:
        raise errors.InputError(
            "No query's label is among the database's; check that both name the same "
            "classes."
        )
    firsts = np.array(firsts)
    recalls = {f"recall_at_{k}": float((firsts < k).mean()) for k in ks}
    return {"map": float(np.mean(areas))} | recalls | {"queries": len(areas)}


def global_average_precision(
    confidence: np.ndarray, right: np.ndarray, answerable: int
) -> float:
    """GAP: average precision of all queries' first guesses in one list.

    Args:
        confidence: [n] of each query's guess; distractors are queries too.
        right: [n] bool, whether it is right; never for a distractor.
        answerable: queries that have an answer, > 0.
    Source: arXiv:2202.01747 section 3.2; equals the GAP of Google Landmarks.
    """
    if answerable < 1:
        raise errors.InputError("No query has an answer; GAP needs one at least.")
    order = np.argsort(-np.asarray(confidence), kind="stable")
    return average_precision(np.asarray(right, bool)[order], answerable)


def gap_by_label(
    ranked: Iterable[Ranked],
    query_labels: np.ndarray,
    labels: np.ndarray,
) -> dict[str, float]:
    """GAP and accuracy of the nearest image's label.

    Args:
        ranked: one a query.
        query_labels: [n] int, below 0 for distractors, which no label fits.
        labels: [m] int, of the database.
    Returns: `gap` over all queries, `gap_without_distractors`, `accuracy`.
    """
    firsts = [(one.query, one.dots[0], labels[one.ids[0]]) for one in ranked]
    query, confidence, guess = map(np.array, zip(*firsts))
    wanted = query_labels[query]
    known = np.isin(wanted, labels) & (wanted >= 0)
    right = known & (guess == wanted)
    count = int(known.sum())
    return {
        "gap": global_average_precision(confidence, right, count),
        "gap_without_distractors": global_average_precision(
            confidence[known], right[known], count
        ),
        "accuracy": float(right[known].mean()),
        "distractors": int((~known).sum()),
    }
