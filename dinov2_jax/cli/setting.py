"""Tables of a task's settings: default, meaning with its unit, and range of each."""

import ast
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dinov2_jax import errors, values


class Range(NamedTuple):
    """Which values a setting takes; of a tuple, which elements."""

    words: str  # "" where any value of the type will do
    fits: Callable[[Any], bool]


# Integers end at 2^31 because JAX counts in 32 bits; comparisons are false for what is
# not a number.
COUNT = Range("1 to 2^31 - 1", lambda x: 1 <= x < 2**31)
WHOLE = Range("0 to 2^31 - 1", lambda x: 0 <= x < 2**31)
POSITIVE = Range("above 0 and finite", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Range("0 or more and finite", lambda x: 0 <= x < math.inf)
FRACTION = Range("above 0 and below 1", lambda x: 0 < x < 1)
SHARE = Range("0 to 1", lambda x: 0 <= x <= 1)
# Beyond these a float32 overflows, or is 0.
EXPONENT = Range("-30 to 30", lambda x: -30 <= x <= 30)
TEMPERATURE = Range("1e-6 to 1e6", lambda x: 1e-6 <= x <= 1e6)
SWITCH = Range("true or false", lambda x: True)
TEXT = Range("", lambda x: True)


def choice(*names: str) -> Range:
    """A Range of some words."""
    return Range(f"one of {', '.join(names)}", lambda x: x in names)


class Setting(NamedTuple):
    """One setting, as it is declared."""

    default: Any
    meaning: str  # with its unit
    range: Range


class Table(dict):
    """Name -> default, as a plain dict; `about` has the whole Setting of each name.

    `Table | Table` has the settings of both. A plain dict in the place of the second
    changes defaults, and may add settings of which nothing but that is known.
    """

    def __init__(self, **settings: Setting):
        """`settings`: by name; two names may differ only in their meaning."""
        super().__init__({name: one.default for name, one in settings.items()})
        self.about = dict(settings)

    def __or__(self, other: Mapping) -> "Table":
        both = Table()
        both.update(self)
        both.update(other)
        both.about = self.about | getattr(other, "about", {})
        return both


def chosen(
    task: str, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> types.SimpleNamespace:
    """The settings of a task: its defaults with what is given in their place.

    Args:
        task: what it is called in an error.
        defaults: a Table, or a plain dict whose settings have no range.
        given: name -> value, or text as on the command line.
    Raises: ValueError, one line, for an unknown name, a value of another type, or one
        out of its range.
    """
    settings = dict(defaults)
    for key, value in given.items():
        if key not in defaults:
            hint = values.hint(key, defaults, 0.5)
            raise errors.InputError(f"{task} has no setting {values.shown(key)}{hint}")
        settings[key] = _value(key, value, defaults[key])
        about = getattr(defaults, "about", {}).get(key)
        if about is not None:
            require(key, settings[key], about.range)
    return types.SimpleNamespace(**settings)


def require(key: str, value: Any, within: Range) -> None:
    """Raises ValueError unless a value, or each element of a tuple, is in a range."""
    parts = value if isinstance(value, tuple) else (value,)
    if not all(map(within.fits, parts)):
        words = within.words if value is parts[0] else f"{within.words}, each"
        raise errors.InputError(f"{key}={values.shown(value)}; expected {words}.")


def listed(defaults: Mapping[str, Any]) -> str:
    """A line for each setting: its default, what it means, and its range."""
    about, lines = getattr(defaults, "about", {}), []
    heads = {name: f"{name}={value}" for name, value in defaults.items()}
    width = min(max(map(len, heads.values())), 40)
    for name, head in heads.items():
        text = ""
        if name in about:
            default, text, within = about[name]
            each = "each " if isinstance(default, tuple) else ""
            text += f" ({each}{within.words})" if within.words else ""
        lines.append(f"{head:<{width}}  {text}".rstrip())
    return "\n".join(lines)


def _value(key: str, given: Any, old: Any) -> Any:
    """A value of the type of the old one; tuples may have any length."""
    value = given
    if isinstance(given, str) and not isinstance(old, str):
        try:
            names = {"true": True, "false": False}
            value = names.get(given.lower())
            value = ast.literal_eval(given) if value is None else value
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = given
    if isinstance(old, tuple):
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
    parts, kind = (value, old[0]) if isinstance(old, tuple) else ((value,), old)
    if not parts or not all(values.alike(kind, x) for x in parts):
        raise errors.InputError(
            f"{key}={values.shown(given)} is no {values.kind(old)}."
        )
    try:
        made = tuple(type(kind)(x) for x in parts)
    except OverflowError as error:  # an integer that no float can hold
        raise errors.InputError(
            f"{key}={values.shown(given)} is no {values.kind(old)}."
        ) from error
    return made if isinstance(old, tuple) else made[0]
