"""Images in Parquet files, as Hugging Face's datasets keep them."""

import collections
import re
import threading
import urllib.parse
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors, escaping
from dinov2_jax.data import columns as choice
from dinov2_jax.data import containers, fingerprint, patterns, remote
from dinov2_jax.data.faults import Faults, Refused
from dinov2_jax.data.record import CLASSES, Record
from dinov2_jax.data.walk import say

KEPT = 4  # decoded row groups that a process holds
MANY = 256  # rows of a group from which random reads are told to be slow
QUERY = re.compile(r"(.*?)\?((?:(?:image|label)=[^&;@]*&?)+)", re.DOTALL)


def columns(text: str) -> tuple[str, str | None, str | None]:
    """The pattern, the column of images and that of labels in FILES?image=A&label=B.

    Args:
        text: what stands behind parquet:. In the name of a column, %26 is an &, %40
            an @ and %3B a semicolon.
    Returns: None for a column that is not named; "" for ?label=, no labels.
    """
    match = QUERY.fullmatch(text)
    if match is None or not remote.is_remote(text) and patterns.exists(text):
        return text, None, None
    named = dict(pair.split("=", 1) for pair in match[2].split("&") if pair)
    named = {key: urllib.parse.unquote(name) for key, name in named.items()}
    return match[1], named.get("image") or None, named.get("label")


class Parquet:
    """The rows of Parquet files with a column of image bytes.

    A row is found by its row group, which is decoded as a whole: random reads cost
    as much as a row group is large. Labels are numbers, with the names of each file's
    own metadata, or texts, which are classes in the order of their names.
    """

    def __init__(
        self, pattern: str, image: str | None = None, label: str | None = None
    ):
        """
        Args:
            pattern: path or URL of the files, see `patterns.find`.
            image: column of the images; None to look for it.
            label: column of the labels; None to look for it, "" for none.
        Raises: ValueError if no file matches, one is no Parquet file, they have no
            such columns, or a label is beyond the names.
        """
        spec = f"parquet:{pattern}"
        self._paths, notes = patterns.find("parquet", pattern)
        metadata = _metadata(self._paths)
        groups = [
            (number, group, one.row_group(group).num_rows)
            for number, one in enumerate(metadata)
            for group in range(one.num_row_groups)
        ]
        self._groups = np.array(groups, np.int64).reshape(-1, 3)
        self._starts = np.cumsum([0, *self._groups[:, 2]])
        if not self._starts[-1]:
            raise errors.InputError(f"{spec} holds no row.")
        kinds, self._kinds = _kinds(self._paths, metadata)
        self._image = choice.image(kinds, spec, image)
        self._label = choice.label(kinds, spec, label)
        self.classes, self._numbers = (), []
        if self._label:
            self._find_classes(kinds, metadata)
        faults = Faults(notes)
        faults.tell(spec)
        self.faults = tuple(faults.lines)
        most = int(self._groups[:, 2].max())
        if most >= MANY:
            say(
                f"{spec}: each random read decodes a row group of up to {most} rows; "
                "dinov2-jax data pack makes files whose records are read alone."
            )
        self.__setstate__(self.__dict__)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = int(index - self._starts[group])
        table = self._table(group)
        image = table[self._image][row].as_py()
        data = image.get("bytes") if isinstance(image, dict) else image
        if not data:
            raise errors.FileError(f"{self.name(index)} holds no bytes of an image.")
        if not self._label:
            return Record(data, -1)
        value = table[self._label][row].as_py()
        label = self._class(value, int(self._groups[group, 0]))
        if label is None:
            raise errors.FileError(
                f"{self.name(index)} has label {value!r}, which is none of the "
                f"{len(self.classes)} classes."
            )
        return Record(data, label)

    def name(self, index: int) -> str:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        path = self._paths[self._groups[group, 0]]
        first = np.flatnonzero(self._groups[:, 0] == self._groups[group, 0])[0]
        return f"{escaping.escaped(path)} row {int(index - self._starts[first])}"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads."""
        return tuple(self._paths)

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "parquet", self._image, self._label, self.classes
        yield from map(fingerprint.File, self._paths)

    def _class(self, value, file: int) -> int | None:
        """The class of a label in a file, -1 if it has none; None if it is unknown."""
        if isinstance(value, str):
            return self._texts.get(
                escaping.normalized(value), -1 if not value else None
            )
        try:
            value = choice.number(value)
        except (ValueError, OverflowError):
            return None
        if value is None or value == -1:
            return -1
        numbers = self._numbers[self._kinds[file]]
        if numbers is None:
            return value if 0 <= value < len(self.classes) else None
        return numbers.get(value)

    def _find_classes(self, kinds: list[choice.Kind], metadata: list) -> None:
        """The names of the labels. Raises: ValueError if one is beyond them."""
        if choice.is_text(kinds, self._label):
            texts = set()
            for number in np.unique(self._groups[self._groups[:, 2] > 0, 0]).tolist():
                texts |= set(self._distinct(number))
            names = {escaping.normalized(x) for x in texts if x}
            if len(names) > CLASSES:
                raise errors.InputError(
                    f"{self._label!r} holds {len(names)} different texts; name a column "
                    "of labels: parquet:FILES?label=COLUMN."
                )
            self.classes, self._numbers = tuple(sorted(names)), [None] * len(kinds)
            return
        largest = [-1] * len(kinds)
        for number, one in enumerate(metadata):
            if not one.num_rows:
                continue
            kind = kinds[self._kinds[number]]
            low, high = _bounds(one, self._label) or self._range(number)
            names = kind.names(self._label)
            top = len(names) if names else CLASSES
            for value in (low, high):
                if not -1 <= value < top:
                    told = (
                        f"has names for 0 to {top - 1}: {patterns.named(list(names))}"
                    )
                    least = f"numbers of classes are 0 to {CLASSES - 1}"
                    raise errors.InputError(
                        f"{self._paths[number]} has label {value} in {self._label!r}, "
                        f"but {told if names else least}; mend the file, or name "
                        "another column: parquet:FILES?label=COLUMN."
                    )
            place = self._kinds[number]
            largest[place] = max(largest[place], high)
        self.classes, self._numbers = choice.classes(kinds, self._label, largest)

    def _range(self, number: int) -> tuple[int, int]:
        """The smallest and largest label of a file; -1 if there is none."""
        try:
            values = [choice.number(value) for value in self._distinct(number)]
        except (ValueError, OverflowError) as error:
            raise errors.InputError(
                f"{self._paths[number]} has a label in {self._label!r} of which {error}; "
                "labels are integers or texts."
            ) from error
        values = [value for value in values if value is not None]
        return min(values, default=-1), max(values, default=-1)

    def _distinct(self, number: int) -> list:
        """The different labels of a file. Raises: ValueError if it is damaged."""
        import pyarrow

        path = self._paths[number]
        try:
            file = _opened(path)
            column = file.read([self._label])[self._label]
            if pyarrow.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            return column.unique().to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise errors.InputError(
                f"{path}: its labels cannot be read: {_line(error)}; copy it again."
            ) from error

    def _table(self, group: int):
        """The columns of a row group, decoded or kept. Raises: OSError."""
        import pyarrow

        with self._lock:
            if group not in self._kept:
                number, inner, _ = self._groups[group].tolist()
                columns = [self._image, self._label] if self._label else [self._image]
                path = self._paths[number]
                try:
                    table = _opened(path).read_row_group(inner, columns)
                except (pyarrow.ArrowException, OSError) as error:
                    raise errors.FileError(
                        f"{path} row group {inner}: {_line(error)}"
                    ) from error
                self._kept[group] = table
            self._kept.move_to_end(group)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[group]

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_kept", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._texts = {name: number for number, name in enumerate(self.classes)}
        self._kept, self._lock = collections.OrderedDict(), threading.Lock()


def _metadata(paths: list[str]) -> list:
    """The footers of files. Raises: ValueError that names those that have none."""
    import pyarrow

    found, broken = [], []
    for path in paths:
        try:
            found.append(_opened(path).metadata)
        except (pyarrow.ArrowException, OSError) as error:
            broken.append(
                f"{path} cannot be read as Parquet: {_described(path, error)}"
            )
    if broken:
        raise Refused(broken, f"copy {len(broken)} of {len(paths)} files again")
    return found


def _kinds(paths: list[str], metadata: list) -> tuple[list[choice.Kind], list[int]]:
    """The different schemas of files with rows, and which one each file has."""
    kinds, places, known = [], [], {}
    for path, one in zip(paths, metadata, strict=True):
        schema = one.schema.to_arrow_schema()
        key = schema.serialize().to_pybytes() if one.num_rows else None
        if key is not None and key not in known:
            known[key] = len(kinds)
            kinds.append(choice.Kind(schema, path))
        places.append(known.get(key, 0))
    return kinds, places


def _bounds(metadata, column: str) -> tuple[int, int] | None:
    """The smallest and largest integer of a column by the footer; None: not there."""
    low, high = [-1], [-1]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not group.num_rows:
            continue
        for place in range(group.num_columns):
            if group.column(place).path_in_schema == column:
                break
        else:
            return None
        found = group.column(place).statistics
        if found is None or not found.has_min_max or not isinstance(found.min, int):
            return None
        low.append(int(found.min))
        high.append(int(found.max))
    return min(low), max(high)


def _described(path: str, error: Exception) -> str:
    """What a file is that is no Parquet file, or else what its reader says."""
    if remote.is_remote(path):
        return _line(error)
    what = containers.of(path)
    cut = "it is cut short, or its end is damaged"
    return (
        cut if what == "a Parquet file" else f"it is {what}" if what else _line(error)
    )


def _line(error: Exception) -> str:
    """The first line of an error of another package."""
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


def _opened(path: str):
    """A Parquet file, here or behind a URL."""
    from pyarrow import parquet

    if not remote.is_remote(path):
        return parquet.ParquetFile(escaping.utf8(path, "Arrow"))
    system, inner = remote.opened(path)
    return parquet.ParquetFile(system.open(inner, "rb"))
