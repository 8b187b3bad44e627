"""Braces in a pattern, as a shell reads them: {a,b} and {000..127}, also nested."""

import itertools
import re
from collections.abc import Iterator

RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def expanded(text: str) -> Iterator[str]:
    """What a text stands for whose {a,b} and {1..9} are choices, as in a shell."""
    opening = text.find("{")
    if opening < 0:
        yield text
        return
    commas, closing = _body(text, opening)
    inside = text[opening + 1 : closing]
    numbers = RANGE.fullmatch(inside) if closing else None
    head, rest = text[:opening], text[closing + 1 :]
    if numbers:
        choices = _range(*numbers.groups())
    elif closing and commas:
        ends = zip([opening, *commas], [*commas, closing], strict=True)
        choices = itertools.chain.from_iterable(
            expanded(text[left + 1 : right]) for left, right in ends
        )
    else:  # the brace means itself
        head, rest, choices = text[: opening + 1], text[opening + 1 :], ("",)
    for choice in choices:
        for tail in expanded(rest):
            yield head + choice + tail


def _body(text: str, opening: int) -> tuple[list[int], int]:
    """Places of the commas of an opening brace and of its end; 0 if it has none."""
    depth, commas = 0, []
    for place in range(opening, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return commas, place
        if depth == 1 and text[place] == ",":
            commas.append(place)
    return [], 0


def _range(low: str, high: str, step: str | None) -> Iterator[str]:
    """The numbers of a range; as wide as its ends if one begins with 0."""
    padded = any(
        x.lstrip("-")[0] == "0" and len(x.lstrip("-")) > 1 for x in (low, high)
    )
    width = max(len(low), len(high)) if padded else 0
    first, last, step = int(low), int(high), abs(int(step or 1)) or 1
    down = first > last
    numbers = range(first, last - 1, -step) if down else range(first, last + 1, step)
    return (f"{number:0{width}d}" for number in numbers)
