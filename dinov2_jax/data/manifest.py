"""The list of a packed data set: its shards, their sizes and sums, its classes."""

import json
import os
import pathlib
from typing import TypedDict
from unicodedata import normalize

from dinov2_jax import errors
from dinov2_jax.escaping import shown

NAME = "manifest.json"
FORMAT = 1


class Shard(TypedDict):
    """One file."""

    file: str
    records: int
    bytes: int
    sha256: str


class Manifest(TypedDict):
    """What manifest.json holds."""

    format: int
    records: int
    classes: list[str]
    labelled: bool
    source: str  # SPEC that it was packed from
    shards: list[Shard]


def read(folder: str | os.PathLike) -> Manifest:
    """The manifest of a folder, whose shards are there in their full size.

    Raises: ValueError naming the first thing that does not match.
    """
    folder = pathlib.Path(folder)
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise errors.InputError(f"format {found['format']} is not {FORMAT}")
        total = sum(shard["records"] for shard in found["shards"])
        if not found["shards"] or total != found["records"]:
            raise errors.InputError(
                f"{found['records']} records, but its shards hold {total}"
            )
        sizes = [(shard["file"], shard["bytes"]) for shard in found["shards"]]
        # Escaped when they were packed, but by an older version not.
        found["classes"] = [normalize("NFC", shown(x)) for x in found["classes"]]
        found["labelled"], found["source"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            f"{path} is no list of a packed data set: {error}"
        ) from error
    for name, _ in sizes:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise errors.InputError(
                f"{path} names {name!r}, which is no file beside it; pack again."
            )
    missing = [name for name, _ in sizes if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise errors.InputError(
            f"{len(missing)} of {len(sizes)} shards that {path} names are missing: "
            f"{', '.join(str(folder / name) for name in missing[:3])}{more}; copy them "
            "here or pack again."
        )
    for name, size in sizes:
        shard = folder / name
        if shard.stat().st_size != size:
            raise errors.InputError(
                f"{shard} has {shard.stat().st_size} bytes, but {path} says {size}; "
                "copy or pack it again."
            )
    return found
