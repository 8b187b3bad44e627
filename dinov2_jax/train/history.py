"""The metrics of a run, one JSON object a line, and TensorBoard where installed."""

import contextlib
import json
import math
import pathlib

from dinov2_jax import writing

CLOCK = ("time/", "memory/")
"""Beginnings of the only metrics that differ between two runs of one config."""


class History:
    """Appends to `metrics.jsonl`; lines after the step of a restart are dropped."""

    def __init__(self, folder: pathlib.Path, step: int, lines: list[str] | None = None):
        """
        Args:
            folder: the run's workdir.
            step: updates already done; 0 for a new run.
            lines: the history that the checkpoint holds; None for a new run.
        """
        self.path = folder / "metrics.jsonl"
        self.lines = [line for line in lines or [] if json.loads(line)["step"] <= step]
        with writing.replacing(self.path) as part:
            text = "".join(line + "\n" for line in self.lines)
            part.write_text(text, encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _board(folder, step)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line; a value that is not finite becomes null."""
        plain = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self.lines.append(json.dumps({"step": step, **plain}))
        self._file.write(self.lines[-1] + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class Silent:
    """The history on processes that write no files; it keeps the lines only."""

    def __init__(self, lines: list[str]):
        """`lines` of the checkpoint; they are saved again as they are."""
        self.lines = lines

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """The first process writes; this one has nothing to do."""

    def close(self) -> None:
        """Nothing is open."""


def last_step(folder: pathlib.Path) -> int:
    """Step of the last whole line of a run's history; -1 if there is none.

    What a crash of the machine left in place of a line is passed over.
    """
    metrics = folder / "metrics.jsonl"
    data = metrics.read_bytes() if metrics.is_file() else b""
    for line in reversed(data[: data.rfind(b"\n") + 1].splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return -1


def reproducible(folder: pathlib.Path) -> list[dict]:
    """Lines of a run's history without what a clock or the memory says."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(CLOCK)}
        for line in lines
    ]


def _board(folder: pathlib.Path, step: int):
    """A TensorBoard writer, or None without the extra `tensorboard`."""
    try:
        import tensorboardX
    except ImportError:
        return None
    logdir = str(folder / "tensorboard")
    return tensorboardX.SummaryWriter(logdir, purge_step=step + 1)
