"""Which checkpoint a run continues from: one for all processes, and none is deleted.

Process 0 says which one is tried. A read that fails is tried again; a process that still
cannot read ends all, since the checkpoint may be sound. One that is read and does not
hold what it should is passed over by all, and renamed once an older one was restored.
"""

import logging
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dinov2_jax import checkpoint, errors, sharding

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""Reads of a checkpoint whose storage fails; of one that seems corrupt, two."""

WAIT = 0.5
"""Seconds before the second read, doubled before each further one."""

PATIENCE = 10.0
"""Seconds that a process waits for one whose storage fails to say why and end all."""

SOUND, CORRUPT, UNREADABLE = range(3)  # what a process finds a checkpoint to be

FAILING = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|PERMISSION_DENIED|UNAUTHENTICATED|"
    r"RESOURCE_EXHAUSTED)\b|OS error (?!2\b)\d+"
)
"""What TensorStore says where storage, rights or memory fail, not what is stored."""


def newest(
    checkpoints: ocp.CheckpointManager, shapes: Any
) -> tuple[int, Any, dict] | None:
    """The newest checkpoint that can be read, the same one on every process.

    Args:
        checkpoints: of `checkpoint.manager`; every process calls this.
        shapes: tree of ShapeDtypeStructs with the shardings that the state gets.
    Returns: (step, state, note), or None if there is no checkpoint. One that is corrupt
        is named in a warning, passed over and, once an older one was restored, renamed
        to corrupt-STEP, so that its step can be saved again.
    Raises: ValueError if there are checkpoints and none can be read; OSError that names
        the processes on which storage fails.
    """
    corrupt = []
    for step in sharding.of_first(sorted(checkpoints.all_steps(), reverse=True)):
        path = pathlib.Path(checkpoints.directory) / str(step)
        verdict, content = _read(path, shapes)
        verdicts = sharding.of_all(verdict)
        if (verdicts == UNREADABLE).any():
            if verdict != UNREADABLE:
                time.sleep(PATIENCE)
            raise _unreadable(path, verdicts, content)
        if (verdicts == SOUND).all():
            _set_aside(checkpoints, corrupt)
            return step, *content
        why = content if verdict else f"by process {verdicts.argmax()}"
        log.warning("checkpoint %d cannot be read (%s); trying older", step, why)
        corrupt.append(step)
    if corrupt:
        raise errors.InputError(
            f"None of the checkpoints {corrupt} in {checkpoints.directory} can be read "
            "with this config; restore the folder or choose another --workdir."
        )
    return None


def _read(path: pathlib.Path, shapes: Any) -> tuple[int, Any]:
    """(SOUND, (state, note)) of a checkpoint, else (what is wrong, why)."""
    attempt = 1
    while True:
        try:
            return SOUND, _content(path, shapes)
        except Exception as error:  # noqa: BLE001  Orbax raises whatever it met
            failing, why = storage_fails(error), checkpoint.short(error)
        if attempt >= (ATTEMPTS if failing else 2):
            break
        log.warning("reading %s failed (%s); trying again", path, why)
        time.sleep(WAIT * 2 ** (attempt - 1) if failing else 0)
        attempt += 1
    if not failing and jax.process_index() and not path.is_dir():
        return UNREADABLE, "it is not there: is --workdir the same folder on all hosts?"
    return (UNREADABLE if failing else CORRUPT), why


def _content(path: pathlib.Path, shapes: Any) -> tuple[Any, dict]:
    """(state, note) of a checkpoint.

    By Orbax's handlers: its manager would wait at the end for processes whose read has
    failed.
    """
    reader = ocp.PyTreeCheckpointHandler()
    item = checkpoint.stored_as(shapes, reader.metadata(path / "state").tree)
    args = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
    )
    state = reader.restore(path / "state", args=args)
    note = ocp.JsonCheckpointHandler().restore(
        path / "note", args=ocp.args.JsonRestore()
    )
    return checkpoint.without_clock(state, shapes), note


def storage_fails(error: BaseException | None) -> bool:
    """Whether storage failed, here or in what an error came from."""
    while error is not None:
        missing = isinstance(error, FileNotFoundError)
        if isinstance(error, OSError | MemoryError) and not missing:
            return True
        if FAILING.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _unreadable(path: pathlib.Path, verdicts: np.ndarray, why: Any) -> OSError:
    """What to tell where storage fails."""
    where = np.flatnonzero(verdicts == UNREADABLE).tolist()
    several = f" on process {', '.join(map(str, where))}" if len(verdicts) > 1 else ""
    why = f" ({why})" if jax.process_index() in where else ""
    return errors.FileError(
        f"checkpoint {path} cannot be read{several}{why}; it was left as it is. Mend "
        "the storage and re-run the same command to resume, or move the checkpoint "
        "away to resume from an older one."
    )


def _set_aside(checkpoints: ocp.CheckpointManager, steps: list[int]) -> None:
    """Rename corrupt checkpoints, which Orbax then no longer sees."""
    if not steps:
        return
    folder = pathlib.Path(checkpoints.directory)
    for step in steps if jax.process_index() == 0 else []:
        path, number = folder / f"corrupt-{step}", 1
        while path.exists():
            number += 1
            path = folder / f"corrupt-{step}-{number}"
        try:
            (folder / str(step)).rename(path)
        except FileNotFoundError:  # Orbax lists folders by other names, too
            continue
        except OSError as error:
            raise errors.FileError(
                f"the corrupt checkpoint {folder / str(step)} cannot be renamed "
                f"({error.strerror}); move it away and re-run the same command."
            ) from error
        log.warning("the corrupt checkpoint %d is now %s", step, path)
    sharding.any_process(False)  # all go on once it is renamed
    checkpoints.reload()
