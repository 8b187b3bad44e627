"""How far something long is: one line that is redrawn on a terminal, plain ones else."""

import shutil
import sys
import time
from typing import TextIO

STEP = 2**20  # bytes; no line for less


class Screen:
    """Where progress is shown; `live` tells whether it is a terminal."""

    def __init__(self, out: TextIO | None = None):
        """`out`: where to print; None for standard error."""
        self.out = sys.stderr if out is None else out
        self.live = self.out.isatty()

    def draw(self, line: str) -> None:
        """Put a line in the place of the one before."""
        # A line that wraps would stay on the screen at every redraw.
        width = shutil.get_terminal_size().columns - 1
        self.out.write(f"\r\x1b[K{line[:width]}")
        self.out.flush()

    def say(self, text: str) -> None:
        """A line of its own, above the one that is redrawn."""
        self.out.write("\r\x1b[K" if self.live else "")
        print(text, file=self.out, flush=True)


def bar(share: float) -> str:
    """A bar of 24 places."""
    return f"[{('#' * round(24 * share)).ljust(24, '.')}]"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class Meter(Screen):
    """How far a download is: a bar on a terminal, a line every tenth elsewhere."""

    def __init__(self, name: str, out: TextIO | None = None):
        """`out`: where to print; None for standard error."""
        super().__init__(out)
        self.name = name
        self.begin(0, None)

    def begin(self, have: int, total: int | None) -> None:
        """An attempt starts with so many bytes of so many."""
        self.first, self.total, self.began = have, total, time.monotonic()
        self.next = self.began if self.live else have // max((total or 0) // 10, STEP)

    def update(self, size: int) -> None:
        """Show the state if enough has changed."""
        if self.live:
            if time.monotonic() < self.next and size != self.total:
                return
            self.next = time.monotonic() + 0.1
            self.draw(self._line(size))
            return
        tenth = size // max((self.total or 0) // 10, STEP)
        if tenth > self.next:
            self.next = tenth
            print(self._line(size), file=self.out, flush=True)

    def _line(self, size: int) -> str:
        """Name, share, megabytes, rate and time left."""
        rate = (size - self.first) / max(time.monotonic() - self.began, 1e-3)
        speed = f"{rate / 1e6:.1f} MB/s"
        if not self.total:
            return f"{self.name}  {size / 1e6:.1f} MB  {speed}"
        share = size / self.total
        drawn = f"{bar(share)} " if self.live else ""
        left = duration((self.total - size) / max(rate, 1.0))
        return (
            f"{drawn}{self.name}  {share:.0%} of {self.total / 1e6:.1f} MB  {speed}  "
            f"{left} left"
        )
