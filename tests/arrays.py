"""PyTorch files of nested dicts and arrays, written by hand: no PyTorch."""

import pathlib

import ml_dtypes
import numpy as np
import torchfiles

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}
"""Type of an array -> its storage in a file."""


def write_torch(path: pathlib.Path, tree: object) -> pathlib.Path:
    """A PyTorch file of nested dicts and arrays, written by hand."""
    storages = {}

    def value(node: object) -> object:
        if isinstance(node, dict):
            return {key: value(inner) for key, inner in node.items()}
        if isinstance(node, list):
            return [value(inner) for inner in node]
        if not isinstance(node, np.ndarray):
            return node
        key, strides = str(len(storages)), [s // node.itemsize for s in node.strides]
        storages[key] = np.ascontiguousarray(node).tobytes()
        kind = f"torch {STORAGES[node.dtype]}"
        return torchfiles.tensor(
            key, node.shape, tuple(strides), 0, kind=kind, count=node.size
        )

    torchfiles.write_zip(path, value(tree), storages)
    return path
