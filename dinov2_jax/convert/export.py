"""Weights as files that others read."""

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy


def write_safetensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], about: Mapping
) -> None:
    """A safetensors file, whole or not at all.

    Args:
        path: file to make; its folder is made too.
        tensors: name -> array.
        about: what describes the weights; stored as JSON under `dinov2_jax`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    metadata = {"dinov2_jax": json.dumps(dict(about)), "format": "pt"}
    safetensors.numpy.save_file(dict(tensors), part, metadata)
    os.replace(part, path)
