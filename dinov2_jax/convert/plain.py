"""The names that a PyTorch file may use, and what each stands for here.

A function of the table gets the arguments and the state of one call, already settled,
takes only the shapes that PyTorch, NumPy and Python write, and allocates no more than a
small multiple of what it is given.
"""

import math

import ml_dtypes
import numpy as np

from dinov2_jax.convert import inert, opcodes

DTYPES = {
    str(dtype): dtype
    for dtype in map(
        np.dtype,
        (
            *(np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.bool),
            *(np.int8, np.int16, np.int32, np.int64),
            *(np.uint8, np.uint16, np.uint32, np.uint64),
        ),
    )
}
STORAGES = {
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Bool": "bool",
}
NUMPY = {
    *("b1", "f2", "f4", "f8"),
    *("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"),
}
VALUES = (
    {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
    | {f"torch.{name}Storage": DTYPES[dtype] for name, dtype in STORAGES.items()}
    | {"torch.storage.UntypedStorage": DTYPES["uint8"], "numpy.ndarray": "ndarray"}
)
"""Names that stand for a value."""


def refusal(name: str, args: tuple) -> inert.BadFile:
    """The error for a known name that is called as neither PyTorch nor NumPy would."""
    given = ", ".join(inert.short(part) for part in args[:8])
    return inert.BadFile(f"its pickle calls {name} with {given or 'nothing'}.")


def typed(raw: bytes | np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Bytes as a flat array, without a copy; each bool is checked to be 0 or 1."""
    flat = np.frombuffer(raw, np.uint8) if len(raw) else np.empty(0, np.uint8)
    if len(flat) % dtype.itemsize:
        raise inert.BadFile(f"{len(flat)} bytes are no whole number of {dtype}.")
    if dtype == bool and len(flat) and flat.max() > 1:
        raise inert.BadFile("its bools are damaged: a byte is neither 0 nor 1.")
    return flat.view(dtype)


def whole(numbers: tuple) -> bool:
    """Whether all are counts that a 64-bit machine can have, and few enough for NumPy."""
    return len(numbers) <= 64 and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )


def _parameter(args: tuple, state: object) -> np.ndarray:
    match args, state:  # a fourth argument holds attributes of the parameter
        case (np.ndarray() as data, bool(), dict() as hooks, *more), None:
            if not hooks and len(more) < 2:
                return data
    raise refusal("a parameter", args)


def _size(args: tuple, state: object) -> tuple:
    match args, state:
        case (tuple() as size,), None if whole(size):
            return size
    raise refusal("torch.Size", args)


def _device(args: tuple, state: object) -> str:
    match args, state:
        case (str() as kind,), None:
            return kind
        case (str() as kind, int() as index), None:
            return f"{kind}:{index}"
    raise refusal("torch.device", args)


def _encode(args: tuple, state: object) -> bytes:
    match args, state:
        case (str() as text, str("latin1")), None:
            return text.encode("latin-1")
    raise refusal("_codecs.encode", args)


def _bytes(args: tuple, state: object) -> bytes:
    match args, state:
        case (), None:
            return b""
        case (bytes() as raw,), None:
            return raw
    raise refusal("bytes", args)


def _set(args: tuple, state: object) -> set:
    match args, state:
        case (list() as items,), None:
            return set(map(opcodes.hashable, items))
    raise refusal("set", args)


def _namespace(args: tuple, state: object) -> dict:
    match args, state:
        case (), dict():
            return state
    raise refusal("argparse.Namespace", args)


def _dtype(args: tuple, state: object) -> np.dtype:
    match args, state:
        case (str() as code, *_), (_, str("<" | "|"), None, None, None, *_):
            if code in NUMPY:
                return np.dtype(code)
    raise refusal("numpy.dtype", args)


def _scalar(args: tuple, state: object) -> np.generic:
    match args, state:
        case (np.dtype() as dtype, bytes() as raw), None:
            if len(raw) == dtype.itemsize:
                return typed(raw, dtype)[0]
    raise refusal("a NumPy scalar", args)


def _shaped(raw: bytes, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    """An array of NumPy's own, after its bytes were compared with its shape."""
    if not whole(shape) or math.prod(shape) * dtype.itemsize != len(raw):
        raise refusal("a NumPy array", (dtype, *shape, raw))
    return typed(raw, dtype).reshape(shape, order=order)


def _array(args: tuple, state: object) -> np.ndarray:
    match args, state:
        case (
            (str("ndarray"), *_),
            (
                int(),
                tuple() as shape,
                np.dtype() as dtype,
                bool() as turned,
                bytes() as raw,
            ),
        ):
            return _shaped(raw, dtype, shape, "F" if turned else "C")
    raise refusal("a NumPy array", args)


def _buffer(args: tuple, state: object) -> np.ndarray:
    match args, state:
        case (
            (
                bytes() as raw,
                np.dtype() as dtype,
                tuple() as shape,
                str("C" | "F") as order,
            ),
            None,
        ):
            return _shaped(raw, dtype, shape, order)
    raise refusal("a NumPy array", args)


CALLS = {
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.set": _set,
    "builtins.frozenset": lambda args, state: frozenset(_set(args, state)),
    "argparse.Namespace": _namespace,
    "numpy.dtype": _dtype,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy._core.numeric._frombuffer": _buffer,
}
"""Functions of (arguments, state) for the names that are called."""
