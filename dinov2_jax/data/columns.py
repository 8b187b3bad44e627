"""Which columns of Parquet files hold images and labels, and what the labels mean."""

import json
import math

from dinov2_jax import errors, escaping
from dinov2_jax.data import patterns, walk

IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
LABELS = (
    *("label", "labels", "fine_label", "class", "class_id", "class_label", "category"),
    *("category_id", "target", "targets", "cls", "y", "class_name", "category_name"),
    *("label_id", "label_name", "coarse_label", "superclass"),
)
"""Names that are looked for, the first of them first."""


class Kind:
    """Files of one schema.

    Fields: `schema`; `path` of the first file; `features` of Hugging Face's metadata.
    """

    def __init__(self, schema, path: str):
        self.schema, self.path = schema, path
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        try:
            self.features = dict(json.loads(text)["info"]["features"])
        except (ValueError, KeyError, TypeError):
            self.features = {}

    def is_a(self, column: str, kind: str) -> bool:
        """Whether Hugging Face's metadata calls a column an Image, a ClassLabel, ..."""
        found = self.features.get(column)
        return isinstance(found, dict) and found.get("_type") == kind

    def names(self, column: str) -> tuple[str, ...]:
        """Names of the numbers in a column; empty if the file names none."""
        found = self.features.get(column)
        names = found.get("names") if isinstance(found, dict) else None
        if isinstance(names, dict):  # {"0": NAME}
            names = [names[key] for key in sorted(names, key=int)]
        return tuple(escaping.normalized(str(name)) for name in names or ())

    def told(self) -> str:
        """The columns, for people."""
        return ", ".join(f"{field.name} ({field.type})" for field in self.schema)


def image(kinds: list[Kind], spec: str, named: str | None) -> str:
    """The column of images.

    Args:
        kinds: of the files.
        spec: that was asked for, for messages.
        named: what the user says it is; None to look for it.
    Raises: ValueError if a file has no such column.
    """
    first = kinds[0]
    hits = [field.name for field in first.schema if _holds_images(field.type)]
    hits.sort(
        key=lambda x: (x != "image", not first.is_a(x, "Image"), _rank(x, IMAGES))
    )
    if not (named or hits):
        raise errors.InputError(
            f"{spec} has no column of images; its columns are {first.told()}. "
            "Expected one of bytes, or of structs with a field `bytes`."
        )
    chosen = named or hits[0]
    for kind in kinds:
        field = _field(kind, chosen)
        if field is None or not _holds_images(field.type):
            also = "" if kind is first else f"; those of {first.path}: {first.told()}"
            raise errors.InputError(
                f"{kind.path} has no column {chosen!r} of images (bytes, or structs "
                f"with a field `bytes`); its columns are {kind.told()}{also}. Name one "
                "that all files have: parquet:FILES?image=COLUMN."
            )
    if not named and len(hits) > 1:
        _say(f"{spec}: images are those of {chosen!r}", "image", hits[1:])
    return chosen


def label(kinds: list[Kind], spec: str, named: str | None) -> str | None:
    """The column of labels, integers or texts; None if there is none.

    Args:
        kinds, spec: as of `image`.
        named: what the user says it is, empty for none; None to look for it.
    Raises: ValueError if some files alone have it, or it holds no labels.
    """
    if named is not None:
        chosen = named or None
    else:
        hits = sorted(
            {x.name for kind in kinds for x in kind.schema if _is_label(kind, x)},
            key=lambda name: (_rank(name, LABELS), name),
        )
        chosen = hits[0] if hits else None
        if len(hits) > 1:
            _say(f"{spec}: labels are those of {chosen!r}", "label", hits[1:])
    if chosen is None:
        fields = list(kinds[0].schema)
        others = [x.name for x in fields if _sort(x.type) in ("number", "text")]
        unfit = [f"{x.name} ({x.type})" for x in fields if x.name.lower() in LABELS]
        if others and named is None:
            _say(f"{spec}: no column of labels is known", "label", others)
        elif unfit and named is None:
            walk.say(
                f"{spec}: images have no labels: {', '.join(unfit)} holds neither "
                "integers nor texts"
            )
        return None
    for kind in kinds:
        field = _field(kind, chosen)
        if field is None or _sort(field.type) is None:
            what = "no column" if field is None else f"no labels but {field.type} in"
            raise errors.InputError(
                f"{kind.path} has {what} {chosen!r}; its columns are {kind.told()}. Name "
                "one of integers or texts that all files have, or none: "
                "parquet:FILES?label=COLUMN or ?label=."
            )
    sorts = {_sort(kind.schema.field(chosen).type): kind.path for kind in kinds}
    if {"number", "text"} <= set(sorts):
        raise errors.InputError(
            f"{chosen!r} holds numbers in {sorts['number']}, but texts in "
            f"{sorts['text']}; make it the same in all files."
        )
    return chosen


def is_text(kinds: list[Kind], column: str) -> bool:
    """Whether a column of labels holds texts."""
    return any(_sort(kind.schema.field(column).type) == "text" for kind in kinds)


def classes(
    kinds: list[Kind], column: str, largest: list[float]
) -> tuple[tuple[str, ...], list[dict[int, int] | None]]:
    """Names of classes, and for files of each kind the class of each number.

    Args:
        kinds: of the files.
        column: of labels, which are numbers.
        largest: number in the files of each kind, -1 if there is none.
    Returns: the names, of the first files first; of files without names the numbers.
    Raises: ValueError if only some of the files have names.
    """
    names = [kind.names(column) for kind in kinds]
    bare = [x for x, named, top in zip(kinds, names, largest) if not named and top >= 0]
    named = [kind for kind, some in zip(kinds, names) if some]
    if named and bare:
        raise errors.InputError(
            f"{bare[0].path} has no names for the numbers in {column!r}, but "
            f"{named[0].path} has ({patterns.named(list(named[0].names(column)))}); "
            "write all files with the same features, or name another column: "
            "parquet:FILES?label=COLUMN."
        )
    if not named:
        top = int(max(largest, default=-1))
        return tuple(map(str, range(top + 1))), [None] * len(kinds)
    if len(set(names)) == 1:
        return names[0], [dict(enumerate(range(len(names[0]))))] * len(kinds)
    union = tuple(dict.fromkeys(name for some in names for name in some))
    places = {name: number for number, name in enumerate(union)}
    return union, [{i: places[name] for i, name in enumerate(x)} for x in names]


def number(value) -> int | None:
    """A label as an integer, None if there is none. Raises: ValueError if it is none."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    if value != int(value):
        raise errors.InputError(f"{value!r} is no integer")
    return int(value)


def _holds_images(kind) -> bool:
    """Whether a type may be that of encoded images."""
    from pyarrow import types

    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_images(kind.field(place).type)
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(test(kind) for test in tests)


def _sort(kind) -> str | None:
    """What labels of a type are: number, text, null; None if it is none of labels."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _sort(kind.value_type)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return "number"
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    if any(test(kind) for test in tests):
        return "text"
    return "null" if types.is_null(kind) else None


def _is_label(kind: Kind, field) -> bool:
    """Whether a column is one of labels by its name or its metadata."""
    from pyarrow import types

    name = field.name.lower()
    if types.is_floating(field.type):  # numbers with gaps, as pandas writes them
        return name in LABELS[:3]
    known = kind.is_a(field.name, "ClassLabel") or name in LABELS
    return _sort(field.type) in ("number", "text") and (
        known or name.endswith(("_label", "_class", "_category"))
    )


def _rank(name: str, names: tuple[str, ...]) -> int:
    """Place of a name among others."""
    return names.index(name.lower()) if name.lower() in names else len(names)


def _field(kind: Kind, column: str):
    """The field of a column; None if there is none or several."""
    places = kind.schema.get_all_field_indices(column)
    return kind.schema.field(places[0]) if len(places) == 1 else None


def _say(line: str, option: str, others: list[str]) -> None:
    """A warning of what was chosen, and from what."""
    walk.say(
        f"{line}; others are {', '.join(others)} (parquet:FILES?{option}=COLUMN takes "
        "one)"
    )
