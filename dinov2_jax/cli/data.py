"""dinov2-jax data: pack, check and measure the images that training reads.

dinov2-jax data pack folder:images packed          shards for arrayrecord:packed
dinov2-jax data check arrayrecord:packed           read, sum and decode everything
dinov2-jax data stats folder:images --out=stats    sizes, classes, speed of each stage
"""

import argparse
import importlib
import pathlib
import types

ACTIONS = {
    "pack": "any source as ArrayRecord shards whose records are read alone",
    "check": "decode every record and verify the sums of packed shards",
    "stats": "sizes, formats and classes; what the input pipeline can deliver here",
}
"""Action -> what it does; cli/data_ACTION.py has its arguments and main."""


def arguments(given: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="dinov2-jax data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("source", help="SPEC, as config.data.train")
        module(name).add_arguments(action)
    return parser.parse_args(given)


def main(given: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = arguments(given)
    return module(options.action).main(options)


def module(action: str) -> types.ModuleType:
    """What does an action."""
    return importlib.import_module(f"dinov2_jax.cli.data_{action}")


def spec(text: str) -> str:
    """A source as it was named, or a folder as the packed data set in it."""
    return f"arrayrecord:{text}" if pathlib.Path(text).is_dir() else text
