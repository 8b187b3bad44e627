"""Classes of two sets that name them in orders of their own."""

import collections
import unicodedata
from collections.abc import Sequence

import numpy as np

from dinov2_jax import errors

SHOWN = 3  # names of an error line


def numbers(train: Sequence[str], other: Sequence[str], split: str) -> np.ndarray:
    """Number among the training classes of each class of another set, by its name.

    Names are equal if their Unicode normal forms (NFC) are: file systems and archives
    spell an accent in several ways. The other set may have a part of the classes.

    Args:
        train: names of the training classes.
        other: names of the other set's classes, in its own order.
        split: what the other set is called in an error, such as `val`.
    Returns: [len(other)] int64.
    Raises: ValueError that names the classes which the training set lacks, or those of
        which one set has two spellings.
    """
    places = {name: number for number, name in enumerate(normal(train, "train"))}
    names = normal(other, split)
    unknown = [name for name in names if name not in places]
    if unknown:
        more = ", ..." if len(unknown) > SHOWN else ""
        raise errors.InputError(
            f"{split} has {len(names)} classes, of which {len(unknown)} are not among "
            f"the {len(places)} of train: {', '.join(unknown[:SHOWN])}{more}. Name them "
            "as train does, or leave them out."
        )
    return np.array([places[name] for name in names], np.int64)


def named_or_numbered(
    train: Sequence[str], other: Sequence[str], split: str
) -> np.ndarray:
    """As `numbers`, but a set of which no name is known may number its classes.

    ImageNet-V2's folders are 0 to 999, in the order of the training classes.
    """
    known = set(normal(train, "train"))
    named = any(name in known for name in normal(other, split))
    if not named and all(x.isdecimal() and int(x) < len(train) for x in other):
        return np.array([int(name) for name in other], np.int64)
    return numbers(train, other, split)


def normal(names: Sequence[str], split: str) -> list[str]:
    """Names in their normal form (NFC).

    Raises: ValueError if two of them become one.
    """
    found = [unicodedata.normalize("NFC", name) for name in names]
    twice = [name for name, count in collections.Counter(found).items() if count > 1]
    if twice:
        raise errors.InputError(
            f"{split} has {len(twice)} classes in two Unicode spellings, such as "
            f"{twice[0]}; put the images of each into one."
        )
    return found
