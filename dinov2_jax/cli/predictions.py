"""What became of each image: predictions.parquet beside results.json."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from dinov2_jax import escaping, writing

NAME = "predictions.parquet"

Columns = Mapping[str, Sequence]
"""Column -> a value for each image; all of one length."""


def write(folder: pathlib.Path, parts: Sequence[Columns]) -> None:
    """One table of all parts, whole or not at all; columns that a part lacks are null.

    Args:
        folder: of the results.
        parts: one for each split, see `of`; none writes nothing and removes what an
            earlier evaluation left.
    """
    path = folder / NAME
    tables = [pyarrow.table(dict(part)) for part in parts]
    if not tables:
        path.unlink(missing_ok=True)
        return
    whole = pyarrow.concat_tables(tables, promote_options="permissive")
    # Opened here, for Arrow takes no path that is not UTF-8.
    with writing.replacing(path) as part, part.open("wb") as file:
        pyarrow.parquet.write_table(whole, file)


def of(
    split: str, ids: Sequence[str], records: np.ndarray, columns: Columns
) -> dict[str, Any]:
    """The columns of a split: which images these are, and what is known of them.

    Args:
        split: such as val, or the name of a test set.
        ids: [n] where each comes from: a path, written escaped, for most sources.
        records: [n] numbers in the source.
        columns: of n values each.
    """
    return {
        "split": [split] * len(ids),
        "id": [escaping.shown(name) for name in ids],
        "record": np.asarray(records, np.int64),
        **columns,
    }


def classes(
    labels: np.ndarray | None,
    guess: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
) -> dict[str, Any]:
    """Columns of a classification.

    Args:
        labels: [n] numbers of the true classes; None where images have several.
        guess: [n] numbers of the predicted ones.
        scores: [n] of these, as the task defines them.
        names: of all classes.
    """
    words = np.array(names, object)
    truth = {}
    if labels is not None:
        truth = {"label": words[labels], "correct": labels == guess}
    return truth | {
        "prediction": words[guess],
        "score": np.asarray(scores, np.float32),
    }


def softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(argmax [n], its probability [n]) of [n K] logits."""
    guess = logits.argmax(1)
    shifted = logits - logits.max(1, keepdims=True)
    return guess, 1 / np.exp(shifted).sum(1)
