"""The architecture beside a PyTorch file that we write, which has no place for it.

`NAME.pth.json` stands beside `NAME.pth`, so that the file itself stays what the official
code loads with `strict=True`.
"""

import json
import pathlib
from collections.abc import Mapping

from dinov2_jax import errors, writing


def place(path: pathlib.Path) -> pathlib.Path:
    """Where the description of a file stands."""
    return path.with_name(f"{path.name}.json")


def write(path: pathlib.Path, about: Mapping) -> None:
    """Describe a file, whole or not at all.

    Args:
        path: the file, written already: its size is noted, so that the description is
            not taken for that of a later file of the same name.
        about: what describes the weights, see `export.about`.
    """
    note = {"file": path.name, "bytes": path.stat().st_size, "dinov2_jax": dict(about)}
    with writing.replacing(place(path)) as part:
        part.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def read(path: pathlib.Path) -> dict:
    """What the description beside a file tells; {} without one.

    A JSON file of somebody else's is not ours to judge, and left.
    Raises: ValueError if it is of another file or damaged.
    """
    beside = place(path)
    if not beside.is_file():
        return {}
    try:
        note = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(note, dict) or "dinov2_jax" not in note:
            return {}
        told = dict(note["dinov2_jax"])
    except (ValueError, TypeError) as error:
        raise errors.InputError(
            f"{beside} should describe {path.name}, but is no JSON object: {error}. "
            "Restore it, or remove it and tell the heads yourself."
        ) from error
    if note.get("bytes") != path.stat().st_size:
        raise errors.InputError(
            f"{beside} describes a file of {note.get('bytes')} bytes, but {path.name} "
            f"has {path.stat().st_size}; give the file that it was written with, or "
            "remove the description."
        )
    return told
