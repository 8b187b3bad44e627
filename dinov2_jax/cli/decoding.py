"""The options of commands that decode images."""

import argparse
import collections
from collections.abc import Iterable, Mapping

from dinov2_jax import errors
from dinov2_jax.data import decode, rules

# What shrinks images is for large ones: a PNG of so many pixels takes 4 GB.
SHRINKABLE = 2**29


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options --max-pixels, --range and --damaged, as config.data has them."""
    add = parser.add_argument
    add(
        "--max-pixels",
        type=int,
        default=decode.MAX_PIXELS,
        help="H*W of the largest image that is decoded; default: "
        f"{decode.MAX_PIXELS}, of pack with --longest {SHRINKABLE}",
    )
    add(
        "--range",
        default="auto",
        help="LOW,HIGH: samples that become black and white, of images of more than 8 "
        "bits, such as --range=-1024,3071; default: auto, what the file declares",
    )
    add(
        "--damaged",
        default="fill",
        choices=rules.DAMAGED,
        help="JPEGs of corrupt data: fill what is lost with gray, or skip them; "
        "default: fill, of check: skip",
    )


_LEAST = {
    "max_pixels": 1,
    "longest": 1,
    "shard_records": 1,
    "records": 1,
    "shuffle": 0,
    "quality": 1,
    "max_skipped": 0,
}
_MOST = {"quality": 100, "max_skipped": 1}


def require(options: argparse.Namespace) -> None:
    """Raises InputError that names an option whose number is out of its range."""
    for name, least in _LEAST.items():
        value, most = getattr(options, name, None), _MOST.get(name)
        if value is None or (value >= least and (most is None or value <= most)):
            continue
        span = f"at least {least}" if most is None else f"from {least} to {most}"
        raise errors.InputError(f"--{name.replace('_', '-')}={value} must be {span}.")


def counted(reasons: Iterable[str] | Mapping[str, int]) -> str:
    """Such as ` (3 damaged, 1 too large)`; "" of none."""
    counts = collections.Counter(reasons).most_common()
    return f" ({', '.join(f'{n} {why}' for why, n in counts)})" if counts else ""
