"""What is done with images that are more, or less, than whole 8-bit pictures."""

import dataclasses
import math

from dinov2_jax import errors

DAMAGED = ("fill", "skip")


class DecodeError(errors.InputError):
    """An image that cannot be decoded, or that is larger than allowed.

    Its `reason`, a word or two, is what summaries count by.
    """

    def __init__(self, message: str, reason: str = "damaged"):
        super().__init__(message)
        self.reason = reason


def reason(error: Exception) -> str:
    """Why a record was passed over, in a word or two, to count by."""
    return error.reason if isinstance(error, DecodeError) else "unreadable"


@dataclasses.dataclass(frozen=True)
class Rules:
    """How samples of more than 8 bits become bytes, and what a damaged JPEG is.

    Fields: `range` (low, high) of the samples that become 0 and 255, in the units of
    the file; None takes what the file declares. `damaged`: fill takes a JPEG whose data
    is corrupt with gray in the place of what is lost, as Pillow does; skip refuses it.
    """

    range: tuple[float, float] | None = None
    damaged: str = "fill"


def of(range: str = "auto", damaged: str = "fill") -> Rules:
    """The rules that two settings state.

    Args:
        range: "auto", or "LOW,HIGH", two rising finite numbers.
        damaged: fill or skip.
    Raises: InputError if one is neither.
    """
    if damaged not in DAMAGED:
        raise errors.InputError(
            f"data.damaged={damaged} is unknown; choose {' or '.join(DAMAGED)}."
        )
    if not is_range(range):
        raise errors.InputError(
            f"data.range={range} is no range of samples; expected auto or LOW,HIGH, two "
            "rising numbers such as 0,4095."
        )
    span = None if range == "auto" else tuple(map(float, range.split(",")))
    return Rules(span, damaged)


def is_range(text: str) -> bool:
    """Whether a text is "auto" or two rising finite numbers with a comma between."""
    try:
        low, high = (0.0, 1.0) if text == "auto" else map(float, text.split(","))
    except ValueError:
        return False
    return math.isfinite(low) and math.isfinite(high) and low < high
