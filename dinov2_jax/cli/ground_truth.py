"""Files of ground truth of revisited Oxford and Paris; no pickle in them is run."""

import io
import json
import pathlib

from dinov2_jax import errors
from dinov2_jax.convert import inert, opcodes, plain
from dinov2_jax.data import truth


def read(path: pathlib.Path) -> truth.Truth:
    """The ground truth of a gnd_NAME.pkl as published, or of the same as JSON.

    Raises: ValueError if the file is missing, names anything but arrays and plain
        values, or is no ground truth.
    Source: https://github.com/filipradenovic/revisitop
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise errors.InputError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        found = json.loads(data) if path.suffix == ".json" else _unpickled(data)
        return truth.of(found)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise errors.InputError(
            f"{path} is no ground truth of revisited Oxford or Paris ({error}); give "
            "gnd_roxford5k.pkl, gnd_rparis6k.pkl or the same as JSON."
        ) from error


def _unpickled(data: bytes) -> object:
    """Values and arrays of a pickle, made by tables of our own alone."""
    calls = plain.CALLS | {
        "numpy._core.multiarray._reconstruct": _array,
        "numpy._core.multiarray.scalar": _scalar,
    }
    if len(data) > opcodes.MAX_BYTES:
        raise inert.BadFile(f"it has {len(data)} bytes, over {opcodes.MAX_BYTES}.")
    tree, _ = opcodes.parse(io.BytesIO(data), {*plain.VALUES, *calls})
    return inert.settle(tree, plain.VALUES, calls)


def _raw(parts: object) -> object:
    """Arguments whose last one is bytes; Python 2, which wrote these files, had texts."""
    if isinstance(parts, tuple) and parts and isinstance(parts[-1], str):
        return (*parts[:-1], parts[-1].encode("latin-1"))
    return parts


def _array(args: tuple, state: object) -> object:
    return plain.CALLS["numpy._core.multiarray._reconstruct"](args, _raw(state))


def _scalar(args: tuple, state: object) -> object:
    return plain.CALLS["numpy._core.multiarray.scalar"](_raw(args), state)
