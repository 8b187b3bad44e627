"""Weights from files; nothing is unpickled."""

import pathlib

import numpy as np
import safetensors
import safetensors.numpy


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name.

    Raises: ValueError if the file is missing or of another format.
    """
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}.") from error
