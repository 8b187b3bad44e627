"""The folder in which the training of a head is kept, for one training alone."""

import json
import os
import pathlib
import sys
from collections.abc import Collection, Mapping

import jax

from dinov2_jax import errors
from dinov2_jax.cli import results, workdir

NAME = "training"
STALE = ("code", "fingerprints")
"""What may have changed under a training: its state is of no use then."""

WEIGHTS = ("architecture", "model", "weights_sha256")
"""Likewise, if they come from the same place as before: of a run that has gone on."""


def making(
    job: results.Job,
    free: Collection[str],
    splits: Collection[str] = ("train", "val"),
) -> dict:
    """All that the head of a job depends on.

    Args:
        job: of the task.
        free: settings that a training which resumes may change.
        splits: those that the training looks at.
    """
    asked = results.asked(job)
    settings = {k: v for k, v in asked["settings"].items() if k not in free}
    prints = {k: v for k, v in asked["fingerprints"].items() if k in splits}
    asked |= {"settings": settings, "fingerprints": prints}
    others = {"train", "val", "tests", "labels"} - set(splits)
    return {k: v for k, v in asked.items() if k not in others}


def claim(out: pathlib.Path, making: Mapping) -> pathlib.Path:
    """The folder of a training's state, which it may resume from.

    A state that was trained on what the data were before, or by other code, is set
    aside in training.old, and the training begins anew.

    Args:
        out: folder of the results.
        making: all that the head depends on, and where its weights come from; JSON
            values. STALE and WEIGHTS name the parts that change without a word of the
            user.
    Raises: ValueError if the folder holds the training of other settings.
    """
    folder, now = out / NAME, json.loads(json.dumps(making))
    path = folder / "making.json"
    if jax.process_index():
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        changed = results.differences(_read(path), now)
        stale = STALE if "weights" in changed else STALE + WEIGHTS
        changed = [key for key in changed if key != "weights"]
        ours = [key for key in changed if key.partition(".")[0] not in stale]
        if ours:
            raise errors.InputError(
                f"{folder} holds a head of another training; different are "
                f"{', '.join(key.removeprefix('settings.') for key in ours)}. Choose "
                "another --out, or remove it."
            )
        if changed:
            old = _set_aside(folder)
            print(
                f"{', '.join(changed)} changed since the training in {folder} was "
                f"begun: it starts anew; what was there is now in {old}.",
                file=sys.stderr,
            )
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_text(path, json.dumps(now, indent=2) + "\n")
    return folder


def _read(path: pathlib.Path) -> dict:
    """What a training was begun with; nothing where that is not written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _set_aside(folder: pathlib.Path) -> pathlib.Path:
    """Rename a folder to one that is not there yet."""
    number, old = 1, folder.with_name(f"{NAME}.old")
    while old.exists():
        number += 1
        old = folder.with_name(f"{NAME}.old{number}")
    os.rename(folder, old)
    return old
