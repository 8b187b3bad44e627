"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import io
import shutil
import sys
import time
from typing import TextIO


class _Nowhere(io.StringIO):
    """Takes text and drops it."""

    def write(self, text: str) -> int:
        return len(text)


NOWHERE = _Nowhere()
"""Where all processes but the first print."""


class Progress:
    """Prints step, rate and time left."""

    def __init__(
        self, start: int, stop: int, out: TextIO | None = None, unit: str = "step"
    ):
        """
        Args:
            start: steps done before.
            stop: steps in all.
            out: where to print; None for standard error.
            unit: what is counted.
        """
        self.start, self.stop, self.unit = start, stop, unit
        self.out = sys.stderr if out is None else out
        self.began, self.text = time.monotonic(), ""
        self.live = self.out.isatty()

    def update(self, step: int) -> None:
        """Redraw the bar; does nothing where there is no terminal."""
        if self.live:
            share = step / max(self.stop, 1)
            bar = ("#" * round(24 * share)).ljust(24, ".")
            line = f"[{bar}] {self._where(step)}  {self.text}"
            # A line that wraps would stay on the screen at every redraw.
            width = shutil.get_terminal_size().columns - 1
            self.out.write(f"\r\x1b[K{line[:width]}")
            self.out.flush()

    def show(self, step: int, text: str) -> None:
        """Take new figures into the bar, or print them as a line."""
        self.text = text
        if self.live:
            self.update(step)
        else:
            print(f"{self._where(step)}  {text}", file=self.out, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.out.write("\r\x1b[K" if self.live else "")
        print(text, file=self.out, flush=True)

    def _where(self, step: int) -> str:
        """Step of steps and the time left at the rate so far."""
        done = step - self.start
        left = "?"
        if done:
            seconds = (time.monotonic() - self.began) / done * (self.stop - step)
            minutes, seconds = divmod(round(seconds), 60)
            hours, minutes = divmod(minutes, 60)
            left = f"{hours}:{minutes:02}:{seconds:02}"
        return f"{self.unit} {step}/{self.stop}  {left} left"
