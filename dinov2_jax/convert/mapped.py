"""Safetensors files as arrays on the file itself: nothing is read before it is used."""

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors

from dinov2_jax import errors

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""The format's names of the types that PyTorch writes weights and counters in."""


def tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors by name, read-only and mapped, and the file's own metadata.

    The library checks the header (offsets, sizes, no overlap); its own NumPy loader
    copies every tensor and has no bfloat16.

    Raises: ValueError if the file cannot be read, is damaged, or holds another type.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise errors.InputError(
            f"{path} is no readable safetensors file: {error}."
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    if not any(ends):  # an empty range cannot be mapped
        data = np.empty(0, np.uint8)
    else:
        data = np.asarray(np.memmap(path, np.uint8, "r", offset=8 + length))
    return {n: _array(path, n, e, data) for n, e in header.items()}, metadata


def _array(
    path: pathlib.Path, name: str, entry: Mapping, data: np.ndarray
) -> np.ndarray:
    """One tensor on the mapped bytes; a copy where they are not aligned."""
    if entry["dtype"] not in DTYPES:
        raise errors.InputError(
            f"{path}: {name} is of type {entry['dtype']}, which is not read; save it as "
            "F32, F16 or BF16."
        )
    start, end = entry["data_offsets"]
    view = data[start:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return view if view.flags.aligned else view.copy()
