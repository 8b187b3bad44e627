"""Bytes of a long transfer as they come in."""

import shutil
import sys
import time
from typing import TextIO

STEP = 2**20  # bytes; no line for less


class Meter:
    """How far a download is: a bar on a terminal, a line every tenth elsewhere."""

    def __init__(self, name: str, out: TextIO | None = None):
        """`out`: where to print; None for standard error."""
        out = sys.stderr if out is None else out
        self.name, self.out, self.live = name, out, out.isatty()
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
            width = shutil.get_terminal_size().columns - 1
            self.out.write(f"\r\x1b[K{self._line(size)[:width]}")
            self.out.flush()
            return
        tenth = size // max((self.total or 0) // 10, STEP)
        if tenth > self.next:
            self.next = tenth
            print(self._line(size), file=self.out, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        self.out.write("\r\x1b[K" if self.live else "")
        print(text, file=self.out, flush=True)

    def _line(self, size: int) -> str:
        """Name, share, megabytes, rate and time left."""
        rate = (size - self.first) / max(time.monotonic() - self.began, 1e-3)
        speed = f"{rate / 1e6:.1f} MB/s"
        if not self.total:
            return f"{self.name}  {size / 1e6:.1f} MB  {speed}"
        share = size / self.total
        bar = f"[{('#' * round(24 * share)).ljust(24, '.')}] " if self.live else ""
        minutes, seconds = divmod(round((self.total - size) / max(rate, 1.0)), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            f"{bar}{self.name}  {share:.0%} of {self.total / 1e6:.1f} MB  {speed}  "
            f"{hours}:{minutes:02}:{seconds:02} left"
        )
