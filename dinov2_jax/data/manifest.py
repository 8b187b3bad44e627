"""The list of a packed data set: its shards, their sizes and sums, its classes."""

import json
import os
import pathlib
from typing import TypedDict
from unicodedata import normalize

from dinov2_jax import errors
from dinov2_jax.data.faults import Refused
from dinov2_jax.escaping import escaped, shown

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
    except FileNotFoundError as error:
        raise errors.InputError(
            f"{folder} is no packed data set, for it has no {NAME}; make one by "
            "dinov2-jax data pack, or name a folder of images as folder:PATH."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            f"{path} is no list of a packed data set: {error}"
        ) from error
    for name, _ in sizes:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise errors.InputError(
                f"{path} names {name!r}, which is no file beside it; pack again."
            )
    wrong = []
    for name, size in sizes:
        shard = folder / name
        if not shard.is_file():
            wrong.append(f"{escaped(shard)} is missing, but {path} names it")
        elif shard.stat().st_size != size:
            has = shard.stat().st_size
            wrong.append(f"{escaped(shard)} has {has} bytes, but {path} says {size}")
    if wrong:
        raise Refused(wrong, f"copy {len(wrong)} of {len(sizes)} shards or pack again")
    return found
