"""Files of heads, released or trained here, and what they tell besides their tensors."""

import difflib
import math
import os
import pathlib

from dinov2_jax import download, errors, released
from dinov2_jax.convert import read as weights

RANGES = {"nyu": 10.0, "kitti": 80.0}
"""Data set in a released depth head's name -> metres of its last bin."""


def read(source: str | os.PathLike) -> tuple[pathlib.Path, object, dict]:
    """The path of a head, its tensors, and what its file or its release tells of it."""
    path = pathlib.Path(source).expanduser()
    if str(source) in released.HEADS:
        path = download.fetch(released.HEADS[str(source)])
    elif not path.is_file():
        near = difflib.get_close_matches(str(source), released.HEADS, 1, 0.6)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise errors.InputError(f"{source} is no file and no released head{hint}")
    tensors, told = weights.tensors(path)
    # A file of a release keeps its name when it is downloaded by hand.
    names = {url.rpartition("/")[2]: name for name, url in released.HEADS.items()}
    release = str(source) if str(source) in released.HEADS else names.get(path.name, "")
    for data, metres in RANGES.items():
        if f"_{data}_" in release:
            told = {"min_depth": 1e-3, "max_depth": metres} | told
    for key in ("min_depth", "max_depth", "upsample"):
        value = told.get(key, 1)
        if not positive(value) or (key == "upsample" and value != int(value)):
            whole = "whole " if key == "upsample" else ""
            raise errors.InputError(
                f"{path} tells {key}={value!r}, which is no {whole}number above 0."
            )
    return path, tensors, told


def positive(value: object) -> bool:
    """Whether it is a finite number above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def note(source: str | os.PathLike) -> dict:
    """What a head's file or the name of its release tells besides the tensors.

    Returns: of a depth head min_depth and max_depth in metres, and how it was trained;
        empty where nothing is told.
    Raises: ValueError if it is no such name or file.
    """
    return read(source)[2]
