"""What a run writes about itself: config, versions, pictures, exported weights."""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from dinov2_jax import checkpoint, errors, writing
from dinov2_jax import config as settings
from dinov2_jax.escaping import utf8
from dinov2_jax.train import history

FREE = (
    "data.workers",
    "data.threads",
    "data.prefetch",
    "train.stop_at",
    "train.minutes",
    "mesh.fsdp",
    "mesh.remat",
    "mesh.unroll",
)
"""Settings that a continued run may change: no result depends on them but, where sums
are taken in another order, by rounding."""

PACKAGES = [
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "pillow",
]


NUMERIC = (
    "models/*.py",
    "data/**/*.py",
    "evals/*.py",
    "features.py",
    "neighbors.py",
    "headfile.py",
    "convert/probes.py",
    "cli/dense.py",
    "cli/depth_errors.py",
    "cli/embed.py",
    "cli/evaluate_*.py",
    "cli/frozen.py",
    "cli/ground_truth.py",
    "cli/head_files.py",
    "cli/heads.py",
    "cli/manylabel.py",
    "cli/storing.py",
    "cli/sweeps.py",
    "cli/windows.py",
)
"""Files whose change may change a feature or a metric."""


def write_text(path: pathlib.Path, text: str) -> None:
    """A text file in UTF-8 whatever the locale, whole or not at all.

    Names are escaped where they are made; any other surrogate is written as \\udcXX.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing.replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def folder(text: str) -> pathlib.Path:
    """The folder that --workdir names.

    Raises: ConfigError for an address: checkpoints are written into folders.
    """
    if "://" in text:
        raise settings.ConfigError(
            f"--workdir={text} is an address; mount it, for instance with gcsfuse, and "
            "give the folder, the same one on all hosts."
        )
    utf8(text, "Orbax")
    return pathlib.Path(text).expanduser()


def check(
    folder: pathlib.Path, config: ConfigDict, allow_change: bool, restart: bool = False
) -> None:
    """Refuse a workdir of another config's run, or whose checkpoints are gone.

    A workdir without a metric and a checkpoint holds no run: what stopped it before
    its first step may be mended in the config. This leaves nothing behind.

    Args:
        folder: the workdir; need not exist.
        config: all settings.
        allow_change: continue although settings differ.
        restart: begin again at step 0 although there were checkpoints.
    Raises: ValueError that lists what differs, that nothing can be written, or what is
        gone.
    """
    near = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=near).close()  # the one honest test; leaves nothing
    except OSError as error:
        raise _unwritable(folder, error) from error
    saved, metrics = folder / "config.json", folder / "metrics.jsonl"
    begun = metrics.is_file() and metrics.stat().st_size > 0
    begun = begun or any((folder / "checkpoints").glob("[0-9]*"))
    if begun and not restart:
        _require_checkpoints(folder)
    if not begun or allow_change:
        return
    if not saved.is_file():
        _require_no_checkpoints(folder)
        return
    try:
        before = json.loads(saved.read_text(encoding="utf-8"))
        changed = settings.differences(config, before)
    except (ValueError, AttributeError) as error:
        raise errors.InputError(
            f"{saved} is damaged ({error}); choose another --workdir, or go on with "
            "--allow-config-change."
        ) from error
    changed = [line for line in changed if line.split(":")[0] not in FREE]
    if changed:
        raise errors.InputError(
            f"{folder} holds a run of another config ({'; '.join(changed)}); "
            "choose another --workdir or add --allow-config-change."
        )


def _require_no_checkpoints(folder: pathlib.Path) -> None:
    """Raises ValueError if a workdir without config.json has checkpoints."""
    if checkpoint.steps(folder / "checkpoints"):
        raise errors.InputError(
            f"{folder} holds a run whose config.json is gone, so that its settings "
            "cannot be compared with these; put it back, or add --allow-config-change "
            "to resume with these."
        )


def _require_checkpoints(folder: pathlib.Path) -> None:
    """Raises ValueError if the checkpoints that a run once saved are gone.

    run.json notes a checkpoint just before it gets its name: one of that step that is
    half-written tells of a run that was killed in between. Metrics without run.json
    are of a run that nothing else is known of.
    """
    saving = checkpoint.half_written(folder / "checkpoints")
    if checkpoint.steps(folder / "checkpoints"):
        return
    last = max(history.last_step(folder), 0)
    # An older version did not note what it saved.
    step = about(folder).get("saved", last or None)
    if not (folder / "run.json").is_file():
        step = last
    if step is not None and step not in saving:
        raise errors.InputError(
            f"{folder} holds a run that has come to step {step}, but its checkpoints "
            f"are gone from {folder / 'checkpoints'}; put them back, choose another "
            "--workdir, or add --restart to begin again at step 0."
        )


def claim(
    folder: pathlib.Path, config: ConfigDict, allow_change: bool, restart: bool = False
) -> None:
    """Make the workdir and record the config, unless `check` refuses it.

    Metrics without a checkpoint, of a run that was killed before its first one or that
    is restarted, are added to metrics.previous.jsonl.
    Raises: ValueError, as `check`.
    """
    check(folder, config, allow_change, restart)
    metrics, copy = folder / "metrics.jsonl", folder / "metrics.previous.jsonl"
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        begun = metrics.is_file() and metrics.stat().st_size > 0
        if begun and not checkpoint.steps(folder / "checkpoints"):
            with writing.replacing(copy) as part:
                before = copy.read_bytes() if copy.is_file() else b""
                part.write_bytes(before + metrics.read_bytes())
            if about(folder).get("saved") is not None:
                note(folder, saved=None)
            print(
                f"{folder} has metrics, but no checkpoint yet: beginning at step 0. "
                f"They are kept in {copy.name}.",
                file=sys.stderr,
            )
        write_text(folder / "config.json", settings.to_json(config) + "\n")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: pathlib.Path, error: OSError) -> ValueError:
    """What to tell of a folder that takes no file."""
    return errors.InputError(
        f"--workdir={folder} cannot be written ({error.strerror}); choose another."
    )


def describe(folder: pathlib.Path, command: list[str], **facts) -> None:
    """Write run.json: versions, git state, how to go on, and given facts."""
    content = {
        "command": shlex.join(["dinov2-jax", "train", *command]),
        "continue": shlex.join(["dinov2-jax", "train", *command]),
        "started": now(),
        "versions": versions(),
        "git": _git(),
        **facts,
    }
    write_text(folder / "run.json", json.dumps(content, indent=2) + "\n")


def about(folder: pathlib.Path) -> dict:
    """What run.json says; nothing where there is none, or no JSON in it."""
    try:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def note(folder: pathlib.Path, **facts) -> None:
    """Add facts to run.json."""
    text = json.dumps(about(folder) | facts, indent=2)
    write_text(folder / "run.json", text + "\n")


def now() -> str:
    """This moment as text."""
    return datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for name in ("dinov2-jax", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def code() -> str:
    """The package's version, and a digest of its files that features come from."""
    home, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for part in NUMERIC for path in home.glob(part)):
        digest.update(str(path.relative_to(home)).encode() + path.read_bytes())
    return f"{versions()['dinov2-jax']}+{digest.hexdigest()[:16]}"


def _git() -> dict[str, str | bool]:
    """Commit and whether the checkout was changed; empty outside a checkout."""
    home = pathlib.Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        run = ["git", "-C", str(home), *arguments]
        return subprocess.run(
            run, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return {"commit": commit, "changed": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {}


def save_picture(folder: pathlib.Path, name: str, picture: np.ndarray) -> None:
    """pictures/NAME.png from [H W 3] uint8, whole or not at all."""
    with writing.replacing(folder / "pictures" / f"{name}.png") as part:
        Image.fromarray(picture).save(part, format="PNG")


class SkippedRecords:
    """Counts records that could not be decoded and names each once in skipped.txt."""

    def __init__(self, folder: pathlib.Path, source):
        """`source` gives names; names of an earlier start are kept."""
        self.path, self.source = folder / "skipped.txt", source
        # An older version wrote it in the encoding of the locale.
        before = self.path.read_bytes() if self.path.is_file() else b""
        self.named = set(before.decode(errors="replace").splitlines())

    def add(self, ids: np.ndarray) -> int:
        """Note record numbers; returns how many there were."""
        new = {self.source.name(int(i)) for i in ids} - self.named
        if new:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in sorted(new))
            self.named |= new
        return len(ids)
