"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import io
import time
from typing import TextIO

from dinov2_jax import meter


class _Nowhere(io.StringIO):
    """Takes text and drops it."""

    def write(self, text: str) -> int:
        return len(text)


NOWHERE = _Nowhere()
"""Where all processes but the first print."""


class Progress(meter.Screen):
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
        super().__init__(out)
        self.start, self.stop, self.unit = start, stop, unit
        self.began, self.text = time.monotonic(), ""

    def update(self, step: int) -> None:
        """Redraw the bar; does nothing where there is no terminal."""
        if self.live:
            drawn = meter.bar(step / max(self.stop, 1))
            self.draw(f"{drawn} {self._where(step)}  {self.text}")

    def show(self, step: int, text: str) -> None:
        """Take new figures into the bar, or print them as a line."""
        self.text = text
        if self.live:
            self.update(step)
        else:
            print(f"{self._where(step)}  {text}", file=self.out, flush=True)

    def _where(self, step: int) -> str:
        """Step of steps and the time left at the rate so far."""
        done = step - self.start
        left = "?"
        if done:
            each = (time.monotonic() - self.began) / done
            left = meter.duration(each * (self.stop - step))
        return f"{self.unit} {step}/{self.stop}  {left} left"
