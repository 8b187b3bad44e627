"""What is wrong with a source that can be read nonetheless, counted and shown."""

from dinov2_jax import errors
from dinov2_jax.data import walk
from dinov2_jax.escaping import shown

KEPT = 1000  # lines that are kept of a source
TOLD = 3  # lines that are told at once


class Refused(errors.InputError):
    """Files that cannot be used, each told in one of `lines`."""

    def __init__(self, lines: list[str], advice: str, start: str = ""):
        """
        Args:
            lines: what is wrong, by file.
            advice: what is to be done.
            start: of the error, before the first line.
        """
        more = f"; and {len(lines) - TOLD} more" if len(lines) > TOLD else ""
        super().__init__(f"{start}{'; '.join(lines[:TOLD])}{more}; {advice}.")
        self.lines = lines


class Faults:
    """Lines, each of which names a thing that is damaged, missing or contradictory."""

    def __init__(self, lines: tuple[str, ...] | list[str] = ()):
        self.lines, self._more = list(lines), 0

    def add(self, line: str) -> None:
        """Keep a line; of many, only the first, and how many more there were."""
        line = shown(line)
        if len(self.lines) < KEPT:
            self.lines.append(line)
            return
        self._more += 1
        self.lines[KEPT:] = [f"{self._more} more of this kind"]

    def tell(self, spec: str) -> None:
        """Say on standard error, in one line, what they are; nothing if there is none.

        Args:
            spec: of the source.
        """
        if self.lines:
            count = len(self.lines) + max(self._more - 1, 0)
            more = f"; and {count - TOLD} more" if count > TOLD else ""
            first = "; ".join(self.lines[:TOLD])
            walk.say(
                shown(
                    f"{spec}: {count} fault{'s' * (count > 1)}: {first}{more}; data check lists them"
                )
            )
