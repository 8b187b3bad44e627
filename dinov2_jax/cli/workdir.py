"""What a run writes about itself: config, versions, pictures, exported weights."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from dinov2_jax import config as settings

FREE = ("data.workers", "data.threads", "data.prefetch", "train.stop_at", "train.minutes")
"""Settings that a continued run may change: they change no result."""

PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain numpy pillow".split()


def write_text(path: pathlib.Path, text: str) -> None:
    """A text file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def claim(folder: pathlib.Path, config: ConfigDict, allow_change: bool) -> None:
    """Make the workdir and record the config, unless it holds another one's run.

    Args:
        folder: the workdir.
        config: all settings.
        allow_change: continue although settings differ.
    Raises: ValueError that lists what differs; OSError if it cannot be written.
    """
    saved = folder / "config.json"
    if saved.is_file():
        try:
            before = json.loads(saved.read_text())
        except ValueError as error:
            raise ValueError(f"{saved} is damaged ({error}); choose another --workdir.")
        changed = settings.differences(config, before)
        changed = [line for line in changed if not line.startswith(FREE)]
        if changed and not allow_change:
            raise ValueError(
                f"{folder} holds a run of another config ({'; '.join(changed)}); "
                "choose another --workdir or add --allow-config-change."
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    write_text(saved, settings.to_json(config) + "\n")


def describe(folder: pathlib.Path, command: list[str], **facts) -> None:
    """Write run.json: versions, git state, how to go on, and given facts."""
    about = {
        "command": shlex.join(["dinov2-jax", "train", *command]),
        "continue": shlex.join(["dinov2-jax", "train", *command]),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        "versions": _versions(),
        "git": _git(),
        **facts,
    }
    write_text(folder / "run.json", json.dumps(about, indent=2) + "\n")


def _versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for name in ("dinov2-jax", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git() -> dict[str, str | bool]:
    """Commit and whether the checkout was changed; empty outside a checkout."""
    home = pathlib.Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        run = ["git", "-C", str(home), *arguments]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return {"commit": commit, "changed": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {}


def save_picture(folder: pathlib.Path, name: str, picture: np.ndarray) -> None:
    """pictures/NAME.png from [H W 3] uint8, whole or not at all."""
    part = folder / "pictures" / f"{name}.png.part"
    Image.fromarray(picture).save(part, format="PNG")
    os.replace(part, folder / "pictures" / f"{name}.png")


class SkippedRecords:
    """Counts records that could not be decoded and names each once in skipped.txt."""

    def __init__(self, folder: pathlib.Path, source):
        """`source` gives names; names of an earlier start are kept."""
        self.path, self.source = folder / "skipped.txt", source
        exists = self.path.is_file()
        self.named = set(self.path.read_text().splitlines()) if exists else set()

    def add(self, ids: np.ndarray) -> int:
        """Note record numbers; returns how many there were."""
        new = {self.source.name(int(i)) for i in ids} - self.named
        if new:
            with self.path.open("a") as file:
                file.writelines(f"{name}\n" for name in sorted(new))
            self.named |= new
        return len(ids)
