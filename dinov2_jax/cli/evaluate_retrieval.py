"""Retrieval by frozen features: the images nearest to a query, and whether they belong.

Protocols: `labels` (mAP and recall@k; without --train each image looks for the others
of --val), `gap` (Met: --val holds the queries, those of no class of --train are
distractors) and `revisited` (Oxford and Paris: --val is the folder of all images,
truth=FILE their gnd file, as published or as JSON).
"""

import dataclasses
import json
import pathlib
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors, escaping
from dinov2_jax.cli import doubts, frozen, ground_truth, predictions, setting
from dinov2_jax.cli.results import Job, Outcome, Picture
from dinov2_jax.cli.setting import Setting
from dinov2_jax.data import classes, decode, fingerprint, rules
from dinov2_jax.data.record import Record, Source
from dinov2_jax.data.truth import Truth
from dinov2_jax.escaping import unescaped
from dinov2_jax.evals import knn, retrieval
from dinov2_jax.viz import evaluation

PROTOCOLS = ("labels", "gap", "revisited")
SETTINGS = frozen.IMAGES | setting.Table(
    protocol=Setting("labels", "what belongs together", setting.choice(*PROTOCOLS)),
    recall=Setting((1, 5, 10), "ranks of recall@k, of labels", setting.COUNT),
    truth=Setting("", "file of ground truth, of revisited", setting.TEXT),
    crop_queries=Setting(
        True, "whether queries are cut to their boxes, of revisited", setting.SWITCH
    ),
    pictures=Setting(
        8, "queries on the page, spread from the best to the worst", setting.WHOLE
    ),
    shown=Setting(6, "nearest images beside each", setting.COUNT),
)


@dataclasses.dataclass(frozen=True)
class Listed:
    """Some records of a source, by number, cut to boxes where there are any."""

    source: Source
    numbers: tuple[int, ...]
    boxes: tuple[tuple[float, float, float, float], ...] = ()  # left top right bottom
    max_pixels: int = decode.MAX_PIXELS
    rules: decode.Rules = decode.RULES
    sha256: str = ""  # `fingerprint.of` the source, if it was taken already

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Record:
        record = self.source[self.numbers[index]]
        if not self.boxes:
            return record
        image = decode.decode(
            record.image, max_pixels=self.max_pixels, rules=self.rules
        )
        left, top, right, bottom = (round(x) for x in self.boxes[index])
        cut = image[max(top, 0) : max(bottom, 1), max(left, 0) : max(right, 1)]
        if not cut.size:
            raise decode.DecodeError(f"the box {self.boxes[index]} holds no pixel.")
        return Record(np.ascontiguousarray(cut), -1)

    def name(self, index: int) -> str:
        return self.source.name(self.numbers[index])

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "listed", self.numbers, self.boxes
        yield self.sha256 or fingerprint.of(self.source)


def inputs(job: Job) -> dict[str, Any]:
    """The sources, and the file of ground truth."""
    found, revisited = frozen.inputs(job), job.settings.protocol == "revisited"
    if revisited and not job.settings.truth:
        raise errors.InputError(
            "protocol=revisited needs --set truth=FILE, such as gnd_roxford5k.pkl."
        )
    if not revisited:
        for split in ("val", "train")[: 1 + (job.train is not None)]:
            frozen.require_names(getattr(job, split), found[split])
            doubts.of_empty_folders(job, split, found[split])
    if job.settings.truth:
        found["truth"] = pathlib.Path(job.settings.truth)
        frozen.require_file("truth", found["truth"])
    if revisited:
        _listed(job, found["val"])
    return found


def run(job: Job) -> Outcome:
    """The metrics of a protocol, and a sheet of queries with what they found."""
    job = job.opened(inputs)
    s = job.settings
    apply = frozen.cls_of(job.backbone, s.compute)
    if s.protocol == "revisited":
        return _revisited(job, apply)
    val = frozen.split(job, "val", apply)
    frozen.require_classes(val)
    doubts.of_labels(job, "val", val.labels, val.source.classes)
    train = val
    if job.train is not None:
        train = frozen.split(job, "train", apply)
        frozen.require_classes(train)
    # Numbers of the training classes; a class that is none of them fits no image.
    names = enumerate(classes.normal(train.source.classes, "train"))
    places = {name: number for number, name in names}
    queries = classes.normal(val.source.classes, "val")
    mapped = np.array([places.get(name, -1) for name in queries])
    wanted = mapped[val.labels]
    ranked = _ranked(val, train)
    beyond = [k for k in s.recall if k > len(train.rows)]
    if beyond and s.protocol == "labels":
        job.warn(
            f"recall={', '.join(map(str, beyond))}: there are only {len(train.rows)} "
            "images to find."
        )
    data = {"val": val.about} | ({} if train is val else {"train": train.about})
    kept = _Kept(s.shown)
    if s.protocol == "gap":
        metrics = retrieval.gap_by_label(map(kept.note, ranked), wanted, train.labels)
    else:
        wanted = np.where(wanted < 0, -2, wanted)  # no image has it
        metrics = retrieval.by_label(
            map(kept.note, ranked), wanted, train.labels, s.recall, kept.score
        )
    marks = [train.labels[ids] == wanted[q] for q, ids in kept.tops.items()]
    sheet = _sheet(kept, marks, val, train, s)
    words = np.array(val.source.classes, object)
    truth = {"label": words[val.labels]}
    images = [_nearest(kept, marks, val, train, truth)]
    return Outcome(metrics, data, sheet, [], images)


def _ranked(queries: frozen.Set, database: frozen.Set):
    """Rankings; a set that searches itself leaves each image out of its own list."""
    rows = np.asarray(knn.unit_rows(queries.rows))
    others = np.asarray(knn.unit_rows(database.rows))
    return retrieval.rankings(rows, others, without_self=queries is database)


class _Kept:
    """The first found images of each query, for the sheet; no ranking is kept whole."""

    def __init__(self, number: int):
        self.number = number
        self.tops: dict[int, np.ndarray] = {}  # query -> database rows
        self.dots: dict[int, np.ndarray] = {}  # query -> their similarities
        self.scores: dict[int, float] = {}  # query -> average precision

    def note(self, one: retrieval.Ranked) -> retrieval.Ranked:
        """Keep what is shown of a ranking, and pass it on."""
        self.tops[one.query] = one.ids[: self.number].copy()
        self.dots[one.query] = one.dots[: self.number].copy()
        self.scores[one.query] = float(one.dots[0])
        return one

    def score(self, one: retrieval.Ranked, area: float) -> None:
        """Sort the sheet by this figure."""
        self.scores[one.query] = area


def _sheet(
    kept: _Kept,
    marks: Sequence[np.ndarray],
    queries: frozen.Set,
    database: frozen.Set,
    s: types.SimpleNamespace,
) -> list[Picture]:
    """Queries from the best to the worst with what they found."""
    known = [q for q in kept.tops if np.isfinite(kept.scores[q])]
    order = sorted(known, key=lambda q: -kept.scores[q])
    places = np.linspace(0, len(order) - 1, min(s.pictures, len(order))).round()
    chosen = [order[int(i)] for i in places]
    if not chosen:
        return []
    by_query = dict(zip(kept.tops, marks))

    def image(found: frozen.Set, row: int) -> np.ndarray:
        record = found.source[int(found.records[row])]
        told = rules.of(s.range, s.damaged)
        return decode.decode(record.image, max_pixels=s.max_pixels, rules=told)

    picture = evaluation.found_picture(
        [image(queries, q) for q in chosen],
        [[image(database, i) for i in kept.tops[q]] for q in chosen],
        [by_query[q] for q in chosen],
    )
    caption = (
        "Each line is a query and the images nearest to it; green frames belong to it. "
        "From the best query to the worst."
    )
    return [Picture("found", "What was found", caption, picture)]


def _nearest(
    kept: _Kept,
    marks: Sequence[np.ndarray],
    queries: frozen.Set,
    database: frozen.Set,
    truth: dict[str, Sequence],
) -> predictions.Columns:
    """What the first found images of each query are, for predictions.parquet."""
    order = list(kept.tops)  # all queries, as they came
    ids = [escaping.shown(name) for name in database.names]
    columns = {
        "nearest": [[ids[i] for i in kept.tops[q]] for q in order],
        "similarity": [kept.dots[q] for q in order],
        "correct": [np.asarray(mark, bool) for mark in marks],
        "score": [kept.scores[q] for q in order],
    }
    return predictions.of("queries", queries.names, queries.records, truth | columns)


def _listed(job: Job, all_images: Source) -> tuple[Truth, dict[str, Listed]]:
    """The ground truth of revisited, and the images of which it tells.

    Args:
        job: of the task.
        all_images: its source.
    Raises: ValueError if the file is no ground truth, or images are missing.
    """
    s, spec = job.settings, job.val
    known = ground_truth.read(pathlib.Path(s.truth).expanduser())
    names = map(unescaped, map(all_images.name, range(len(all_images))))
    names = [pathlib.Path(name).stem for name in names]
    places = {name: number for number, name in enumerate(names)}
    lost = [n for n in (*known.images, *known.queries) if n not in places]
    if lost:
        raise errors.InputError(
            f"{spec} lacks {len(lost)} images of the ground truth, such as "
            f"{', '.join(lost[:3])}; give the folder that holds them all."
        )
    if 0 < s.limit < max(len(known.images), len(known.queries)):
        raise errors.InputError(
            f"limit={s.limit}: protocol=revisited needs all images; set limit=0."
        )
    boxes = known.boxes if s.crop_queries else ()
    decoding = s.max_pixels, rules.of(s.range, s.damaged)
    sha256 = job.fingerprints.get("val", "")

    def listed(names: Sequence[str], boxes: tuple = ()) -> Listed:
        numbers = tuple(places[name] for name in names)
        return Listed(all_images, numbers, boxes, *decoding, sha256)

    parts = {
        "database": listed(known.images),
        "queries": listed(known.queries, boxes),
    }
    return known, parts


def _revisited(job: Job, apply) -> Outcome:
    """mAP of revisited Oxford or Paris."""
    s, spec = job.settings, job.val
    known, lists = _listed(job, job.inputs["val"])
    found = {
        part: frozen.features(
            job.backbone,
            apply,
            "cls",
            f"{spec} ({part} of {json.dumps([s.truth, s.crop_queries])})",
            job.cache,
            s,
            source,
        )
        for part, source in lists.items()
    }
    for part, one in found.items():
        if one.about["skipped"] or len(one.rows) < len(lists[part]):
            raise errors.InputError(
                f"{spec}: only {len(one.rows)} of {len(lists[part])} images of the "
                f"{part} could be decoded; this protocol needs all."
            )
    kept = _Kept(s.shown)
    queries, database = found["queries"], found["database"]
    ranked = map(kept.note, _ranked(queries, database))
    metrics = retrieval.revisited(ranked, known.lists)
    good = [{*x["easy"], *x["hard"]} for x in known.lists]
    marks = [[int(i) in good[q] for i in ids] for q, ids in kept.tops.items()]
    first = {k: metrics[k] for k in ("map_medium", "map_hard") if k in metrics}
    data = {"val": database.about, "queries": queries.about}
    sheet = _sheet(kept, marks, queries, database, s)
    images = [_nearest(kept, marks, queries, database, {})]
    return Outcome(first | metrics, data, sheet, [], images)
