"""Images in Parquet files, as Hugging Face's datasets keep them."""

import collections
import json
import logging
import threading
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import fingerprint, remote
from dinov2_jax.data.record import Record

KEPT = 4  # decoded row groups that a process holds
MANY = 256  # rows of a group from which random reads are told to be slow
LABELS = ("label", "labels", "fine_label")


class Parquet:
    """The rows of Parquet files with a column of image bytes.

    A row is found by its row group, which is decoded as a whole: random reads cost
    as much as a row group is large.
    """

    def __init__(self, pattern: str):
        """
        Args:
            pattern: path or URL of the files, see `remote.find`.
        Raises: ValueError if no file matches, one is no Parquet file, or there is no
            column of images.
        """
        import pyarrow

        self._paths = remote.find(pattern)
        if not self._paths:
            raise errors.InputError(f"parquet:{pattern} matches no file.")
        places, rows = [], []
        try:
            for number, path in enumerate(self._paths):
                file = _opened(path)
                for group in range(file.num_row_groups):
                    places.append((number, group))
                    rows.append(file.metadata.row_group(group).num_rows)
            schema = file.schema_arrow
        except (pyarrow.ArrowException, OSError) as error:
            raise errors.InputError(
                f"{path} cannot be read as Parquet: {error}"
            ) from error
        self._groups = np.array(places, np.int64).reshape(-1, 2)
        self._starts = np.cumsum([0, *rows])
        if not self._starts[-1]:
            raise errors.InputError(f"parquet:{pattern} holds no row.")
        self._image = _image_column(schema, f"parquet:{pattern}")
        self._label, self.classes = _label_column(schema)
        if max(rows) >= MANY:
            logging.getLogger(__name__).warning(
                "parquet:%s: each random read decodes a row group of up to %d rows; "
                "dinov2-jax data pack makes files whose records are read alone.",
                pattern,
                max(rows),
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
        label = table[self._label][row].as_py() if self._label else None
        return Record(data, -1 if label is None else int(label))

    def name(self, index: int) -> str:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        path = self._paths[self._groups[group, 0]]
        first = np.flatnonzero(self._groups[:, 0] == self._groups[group, 0])[0]
        return f"{path} row {int(index - self._starts[first])}"

    def identity(self) -> Iterator:
        """What `fingerprint.of` reads."""
        yield "parquet", self._image, self._label, self.classes
        yield from map(fingerprint.File, self._paths)

    def _table(self, group: int):
        """The columns of a row group, decoded or kept. Raises: OSError."""
        import pyarrow

        with self._lock:
            if group not in self._kept:
                number, inner = self._groups[group].tolist()
                columns = [self._image, self._label] if self._label else [self._image]
                path = self._paths[number]
                try:
                    table = _opened(path).read_row_group(inner, columns)
                except (pyarrow.ArrowException, OSError) as error:
                    raise errors.FileError(
                        f"{path} row group {inner}: {error}"
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
        self._kept, self._lock = collections.OrderedDict(), threading.Lock()


def _opened(path: str):
    """A Parquet file, here or behind a URL."""
    from pyarrow import parquet

    if not remote.is_remote(path):
        return parquet.ParquetFile(path)
    system, inner = remote.opened(path)
    return parquet.ParquetFile(system.open(inner, "rb"))


def _image_column(schema, spec: str) -> str:
    """The column that holds encoded images, `image` first."""
    from pyarrow import types

    def holds_images(kind) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = [field.name for field in schema if holds_images(field.type)]
    if not found:
        raise errors.InputError(
            f"{spec} has no column of images; its columns are "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}. Needed is "
            "one of bytes, or of structs with a field `bytes`."
        )
    return "image" if "image" in found else found[0]


def _label_column(schema) -> tuple[str | None, tuple[str, ...]]:
    """The column of integer labels, and the names that the file's metadata gives."""
    from pyarrow import types

    found = [x for x in LABELS if x in schema.names]
    found = [x for x in found if types.is_integer(schema.field(x).type)]
    if not found:
        return None, ()
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(text)["info"]["features"][found[0]]["names"]
    except (ValueError, KeyError, TypeError):
        names = ()
    return found[0], tuple(map(str, names))
