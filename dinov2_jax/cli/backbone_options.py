"""Options by which a command says which backbone of a file it means, and what it is."""

import argparse

from dinov2_jax.convert import read
from dinov2_jax.convert.adapt import Size


def add(parser: argparse.ArgumentParser) -> None:
    """Add --which, --prefix, --num-heads and --partial."""
    parser.add_argument(
        "--which",
        default="teacher",
        choices=read.WHICH,
        help="network of a run, or of a file with both; an average of weights (EMA) is "
        "a teacher",
    )
    parser.add_argument(
        "--prefix",
        help="prefix of the backbone's names in a file that holds several",
    )
    parser.add_argument(
        "--num-heads", type=int, help="attention heads, where a file does not tell"
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="load what fits; the rest is listed and initialised anew",
    )


def chosen(options: argparse.Namespace) -> dict:
    """They as arguments of `load_backbone`."""
    return {
        "which": options.which,
        "prefix": options.prefix,
        "heads": options.num_heads,
        "partial": options.partial,
    }


def pixels(text: str) -> tuple[int, int]:
    """(rows, columns) of `224` or `224x336`."""
    rows, cross, columns = text.partition("x")
    return int(rows), int(columns if cross else rows)


def size(text: str) -> Size:
    """The same with one number for a square."""
    rows, columns = pixels(text)
    return rows if rows == columns else (rows, columns)
