"""The options of commands that decode images."""

import argparse

from dinov2_jax.data import decode, rules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options --max-pixels, --range and --damaged, as config.data has them."""
    add = parser.add_argument
    add(
        "--max-pixels",
        type=int,
        default=decode.MAX_PIXELS,
        help="larger images are passed over",
    )
    add(
        "--range",
        default="auto",
        help="LOW,HIGH: samples that become black and white, of images of more than 8 "
        "bits; default: what the file declares",
    )
    add(
        "--damaged",
        default="fill",
        choices=rules.DAMAGED,
        help="JPEGs of corrupt data: fill what is lost with gray, or skip them; "
        "default: fill",
    )
