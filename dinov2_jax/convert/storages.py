"""Tensors of a PyTorch file as views of its storages, each checked before it is made."""

import math
import mmap
from collections.abc import Callable

import numpy as np

from dinov2_jax.convert import inert, opcodes, plain

TENSOR = "torch._utils._rebuild_tensor_v2"
RETYPED = "torch._utils._rebuild_tensor_v3"
TENSORS = (TENSOR, RETYPED)


def declared(pid: tuple) -> tuple[np.dtype, str, int]:
    """Type, key and number of values of a storage, from its settled persistent id.

    Raises: BadFile if the id has another form.
    """
    match pid:
        case (str("storage"), np.dtype() as kind, str() as key, str(), int() as count):
            return kind, key, count
        case (
            str("storage"),
            np.dtype() as kind,
            str() as key,
            str(),
            int() as count,
            None,
        ):
            return kind, key, count  # a stream's; None: it is no part of another one
    raise plain.refusal("a storage", pid)


def _is_nothing(value: object) -> bool:
    return value is None or (type(value) is dict and not value)


class Storages:
    """The storages of one file, and the tensors made of them."""

    def __init__(self, data: mmap.mmap, places: dict[str, tuple[int, int]], most: int):
        """Of a mapped file, each key's start and length in bytes, and a limit in bytes."""
        self.data = np.frombuffer(data, np.uint8)
        self.places = places
        self.most = most
        self.total = 0  # bytes of all tensors so far
        self.raw: dict[str, np.ndarray] = {}
        self.flat: dict[tuple[str, np.dtype], np.ndarray] = {}

    def calls(self) -> dict[str, Callable[[tuple, object], np.ndarray]]:
        """The names that make storages and tensors, for `inert.settle`."""
        return {
            opcodes.PERSISTENT: self._storage,
            TENSOR: self._tensor,
            RETYPED: self._retyped,
        }

    def _storage(self, args: tuple, state: object) -> np.ndarray:
        """A storage as a flat array."""
        dtype, key, count = declared(args)
        if key not in self.places:
            raise inert.BadFile(f"it has no storage {inert.short(key)}.")
        start, size = self.places[key]
        if size != count * dtype.itemsize:
            raise inert.BadFile(
                f"its storage {inert.short(key)} has {size} bytes, where {count} values "
                f"of {dtype} need {count * dtype.itemsize}."
            )
        if key not in self.raw:
            raw = self.data[start : start + size]
            # A stream starts storages anywhere; each such one is copied once.
            self.raw[key] = raw if start % 8 == 0 else raw.copy()
            self.raw[key].flags.writeable = False
        if (key, dtype) not in self.flat:
            self.flat[key, dtype] = plain.typed(self.raw[key], dtype)
        return self.flat[key, dtype]

    def _tensor(self, args: tuple, state: object) -> np.ndarray:
        """A tensor of its storage's type."""
        match args, state:
            case (np.ndarray() as flat, *place, bool(), dict() as hooks), None:
                return self._view(flat, place, [hooks])
            case (np.ndarray() as flat, *place, bool(), dict() as hooks, bits), None:
                return self._view(flat, place, [hooks, bits])
        raise plain.refusal("a tensor", args)

    def _retyped(self, args: tuple, state: object) -> np.ndarray:
        """A tensor of a type that has no storages of its own, as uint16."""
        match args, state:
            case (np.ndarray() as flat, *place, bool(), dict() as hooks, kind), None:
                raw = flat.ndim == 1 and flat.dtype == np.uint8
                if raw and isinstance(kind, np.dtype) and kind != bool:
                    return self._view(plain.typed(flat, kind), place, [hooks])
        raise plain.refusal("a tensor", args)

    def _view(self, flat: np.ndarray, place: list, rest: list) -> np.ndarray:
        """A view of a flat storage; `rest` is what must be empty: hooks, lazy negation."""
        match place:
            case [int() as offset, tuple() as size, tuple() as stride]:
                sound = flat.ndim == 1 and len(size) == len(stride)
                sound &= plain.whole((offset, *size, *stride))
                sound &= all(map(_is_nothing, rest))
            case _:
                sound = False
        if not sound:
            raise plain.refusal("a tensor", (flat, *place))
        steps = [step if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        last = offset + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
        count = math.prod(size)
        if count and (last >= len(flat) or count > len(flat)):
            raise inert.BadFile(
                f"its tensor of shape {size}, stride {stride} and offset {offset} needs "
                f"{max(last + 1, count)} values and its storage has {len(flat)}."
            )
        self.total += math.prod(max(n, 1) for n in size) * flat.itemsize
        if self.total > self.most:
            raise inert.BadFile(
                f"its tensors have over {self.most} bytes; give a larger max_bytes if "
                "they should."
            )
        if not count:
            return np.empty(size, flat.dtype)
        strides = [step * flat.itemsize for step in steps]
        raw, begin = flat.view(np.uint8), offset * flat.itemsize
        return np.ndarray(size, flat.dtype, raw, begin, strides)
