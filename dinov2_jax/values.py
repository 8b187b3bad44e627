"""Which values the settings may take, and how a text becomes one."""

import ast
import difflib
import math
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from dinov2_jax import errors


class ConfigError(errors.InputError):
    """A setting that cannot be used; the message is one line for the user."""


# Words for an error line, the test itself, and the settings. Integers end at 2^31
# because JAX counts in 32 bits; comparisons are false for what is not a number.
_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "0 to 1",
        lambda x: 0 <= x <= 1,
        """
        data.max_skipped augment.flip augment.jitter augment.gray augment.blur
        augment.solarize masks.probability masks.ratio loss.center_momentum
        teacher.momentum teacher.momentum_end
        """,
    ),
    (
        "0 or more and below 1",
        lambda x: 0 <= x < 1,
        "model.drop_path optim.betas",
    ),
    (
        "above 0 and at most 1",
        lambda x: 0 < x <= 1,
        "crops.global_scale crops.local_scale optim.layer_decay",
    ),
    ("0 to 0.5", lambda x: 0 <= x <= 0.5, "augment.hue"),
    ("0 to 256", lambda x: 0 <= x <= 256, "augment.solarize_threshold"),
    (
        "above 0 and finite",
        lambda x: 0 < x < math.inf,
        """
        augment.blur_sigma loss.student_temp teacher.temp teacher.warmup_temp eval.temp
        """,
    ),
    (
        "0 or more and finite",
        lambda x: 0 <= x < math.inf,
        """
        augment.brightness augment.contrast augment.saturation model.layerscale
        model.offset loss.dino_weight loss.koleo_weight loss.ibot_weight optim.base_lr
        optim.min_lr optim.weight_decay optim.weight_decay_end optim.patch_embed_factor
        optim.clip train.minutes
        """,
    ),
    (
        "1 to 2^31 - 1",
        lambda x: 1 <= x < 2**31,
        """
        data.max_pixels data.attempts data.canvas crops.global_size crops.local_size crops.global_number
        head.prototypes head.hidden head.bottleneck head.layers patch_head.prototypes
        patch_head.hidden patch_head.bottleneck patch_head.layers
        loss.sinkhorn_iterations train.steps train.batch_size train.group_size
        train.accumulate train.log_every train.max_rejected eval.batch_size eval.resize
        eval.crop eval.neighbors eval.limit eval.pictures checkpoint.keep mesh.unroll
        """,
    ),
    (
        "0 to 2^31 - 1",
        lambda x: 0 <= x < 2**31,
        """
        seed data.workers data.threads data.prefetch crops.local_number model.registers
        model.image_size model.width model.depth model.heads init.heads optim.warmup
        optim.freeze_last_layer teacher.temp_warmup train.stop_at eval.every
        checkpoint.every checkpoint.keep_every mesh.fsdp
        """,
    ),
)

RANGES = {
    name: (words, fits) for words, fits, names in _RANGES for name in names.split()
}
"""Setting -> (its range in words, whether a number lies in it)."""

RISING = (
    "crops.global_scale",
    "crops.local_scale",
    "masks.ratio",
    "augment.blur_sigma",
)
"""Pairs (low, high), low <= high."""


def refusal(name: str, value: Any) -> str:
    """What a setting must be that the value is not, or "" if the value will do.

    Args:
        name: dotted, as in `train.steps`.
        value: of the type that the setting has; each element of a tuple is tested.
    """
    if name not in RANGES:
        return ""
    words, fits = RANGES[name]
    values = value if isinstance(value, tuple) else (value,)
    if not all(map(fits, values)):
        return words
    if name in RISING and value[0] > value[1]:
        return "in rising order"
    return ""


def parse(key: str, text: str, old: Any) -> Any:
    """The value of an override, of the type and tuple length of the old one."""
    if isinstance(old, str):
        return text
    names = {"true": True, "false": False}
    wrong = ConfigError(f"config.{key}={shown(text)} is no {kind(old)}.")
    try:
        value = names.get(text.lower())
        value = ast.literal_eval(text) if value is None else value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise wrong from error
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if not alike(old, value):
        raise wrong
    try:
        if isinstance(old, tuple):
            return tuple(map(type(old[0]), value))
        return type(old)(value)
    except OverflowError as error:  # an integer that no float can hold
        raise wrong from error


def alike(old: Any, new: Any) -> bool:
    """Whether a value may stand where the old one stood; ints pass as floats."""
    if isinstance(old, tuple):
        same = isinstance(new, tuple) and (len(new) == len(old) or _any_length(old))
        return same and bool(new) and all(alike(old[0], item) for item in new)
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    return isinstance(new, (int, float) if isinstance(old, float) else type(old))


def _any_length(value: tuple) -> bool:
    """Tuples of integers are lists (of neighbours); pairs of floats are ranges."""
    return isinstance(value[0], int)


def kind(value: Any) -> str:
    """What a field takes, in words."""
    if isinstance(value, tuple):
        number = "" if _any_length(value) else f"{len(value)} "
        return f"tuple of {number}{type(value[0]).__name__}s, such as {value}"
    return f"{type(value).__name__}, such as {value}"


def hint(key: str, known: Iterable[str], cutoff: float, shown=str) -> str:
    """The end of an error line: the nearest of the known names, where one is near."""
    near = difflib.get_close_matches(key[:200], known, 1, cutoff)
    return f"; did you mean {shown(near[0])}?" if near else "."


def shown(value: Any) -> str:
    """A value for an error line, cut where it is long."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def mistake(error: Exception, path: str) -> str | None:
    """Where a config file is wrong that raised an exception when it was run.

    At fault are its syntax, its own lines and what they ask of the standard library;
    and every line, also of another file of the user's, whose setting this package or
    ConfigDict refuses.
    Returns: `FILE, line 12`, or `FILE` where no line is to blame; None for what the
        user's own code in other files, or a library, raised.
    """
    if isinstance(error, SyntaxError):
        if error.filename not in (None, path):
            return None
        return f"{path}, line {error.lineno}" if error.lineno else path
    frames = traceback.extract_tb(error.__traceback__)
    users = [
        f for f in frames if not _is_setting(f.filename) and not _is_std(f.filename)
    ]
    refused = isinstance(error, errors.Error) or _is_setting(frames[-1].filename)
    if not users:
        return path if refused else None
    if not refused and users[-1].filename != path:
        return None
    return f"{users[-1].filename}, line {users[-1].lineno}"


def _is_setting(file: str) -> bool:
    """Whether a file is of this package or of ConfigDict."""
    return (
        file.startswith(os.path.dirname(__file__) + os.sep) or "ml_collections" in file
    )


def _is_std(file: str) -> bool:
    """Whether a file is of Python's standard library."""
    library = sysconfig.get_path("stdlib") + os.sep
    return file.startswith("<frozen ") or (
        file.startswith(library) and "-packages" not in file
    )
