"""Ranges of the samples of images of more than 8 bits, measured over a source."""

from typing import Any

import numpy as np

from dinov2_jax.data import decode, deep, sources, walk
from dinov2_jax.data.reading import Reader
from dinov2_jax.data.record import Source

FEW = 16  # records whose samples are measured before every run


def measured(source: Source, ids: np.ndarray, max_pixels: int) -> list[dict[str, Any]]:
    """What kinds of deep images there are among some records, and what they hold.

    Args:
        source: where they are; the parts of a Mixture are told apart.
        ids: [n] their numbers.
        max_pixels: largest image that is decoded.
    Returns: a row for each kind: `source`, its place in a Mixture, from 1; `kind`;
        `images`; `low` and `high`, the smallest and largest sample; `declared`, the
        range by the files or None.
    """
    starts = source.starts if isinstance(source, sources.Mixture) else [0]
    reader, found = Reader(source), {}
    for index in ids:
        try:
            record, _ = reader.record(int(index))
            if isinstance(record.image, np.ndarray):
                continue
            samples = decode.samples(record.image, max_pixels=max_pixels)
        except (OSError, decode.DecodeError):
            continue  # counted, with its reason, where all records are decoded
        if samples is None:
            continue
        part = int(np.searchsorted(starts, index, side="right"))
        declared = samples.declared and tuple(samples.declared)
        row = found.setdefault((part, samples.kind, declared), [])
        row.append(deep.measured(samples))
    return [
        {
            "source": part,
            "kind": kind,
            "images": len(row),
            "low": min(low for low, _ in row),
            "high": max(high for _, high in row),
            "declared": declared,
        }
        for (part, kind, declared), row in found.items()
    ]


def needed(rows: list[dict[str, Any]]) -> str:
    """A data.range under which no row is refused; "" if `auto` refuses none."""
    spans = [_better(row) for row in rows if row["declared"] is None]
    if not spans:
        return ""
    return _text((min(low for low, _ in spans), max(high for _, high in spans)))


def tell(spec: str, source: Source, max_pixels: int, told: decode.Rules) -> None:
    """Says on standard error if images fill a small part of the range they declare.

    Args:
        spec: what the source is called.
        source: of which a few records are read.
        max_pixels, told: as decode.decode.
    """
    if told.range is not None:
        return
    count = min(len(source), FEW)
    rows = measured(source, np.arange(count) * len(source) // count, max_pixels)
    if any(row["declared"] and _better(row) for row in rows):
        for line in lines(rows, "auto"):
            walk.say(f"{spec}: {line}")


def lines(rows: list[dict[str, Any]], chosen: str) -> list[str]:
    """What `data stats` shows of rows, where `chosen` is data.range."""
    text, several = [], len({row["source"] for row in rows}) > 1
    for row in rows:
        where = f"source {row['source']}: " if several else ""
        declared = row["declared"]
        known = f"{deep.shown(declared)} declared" if declared else "none declared"
        span = deep.shown((row["low"], row["high"]))
        text.append(f"{where}{row['images']} {row['kind']}: samples {span}, {known}")
    better = {_text(span) for row in rows if (span := _better(row))}
    if rows and chosen != "auto":
        text.append(f"decoded by data.range={chosen}")
    elif len(better) == 1:
        text.append(f"set data.range={better.pop()} (--range of other commands)")
    elif better:
        text.append(
            f"these need different ranges ({' and '.join(sorted(better))}), but "
            "data.range is one for all: rescale the images of all but one"
        )
    return text


def _better(row: dict[str, Any]) -> tuple[float, float] | None:
    """The range that a row's samples fill, if its files declare none, or 4 times it."""
    low, high, declared = row["low"], row["high"], row["declared"]
    if declared is None:
        return (low, high if high > low else low + 1)
    bits = max(int(high).bit_length(), 8)
    if isinstance(high, float) or declared[0] or 2 ** (bits + 1) > declared[1]:
        return None
    return (0, 2**bits - 1)


def _text(span: tuple[float, float]) -> str:
    """A value of data.range."""
    return ",".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in span)
