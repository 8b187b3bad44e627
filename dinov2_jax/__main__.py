"""The command line: `dinov2-jax COMMAND ...` or `python -m dinov2_jax COMMAND ...`."""

import importlib
import io
import os
import sys
import traceback

from dinov2_jax import __version__, errors
from dinov2_jax.escaping import shown

COMMANDS = {
    "train": "pretrain from a config; the same command again continues",
    "bench": "time the training step on the devices at hand",
    "plan": "what a config needs of TPUs or GPUs that are not at hand, and fits",
    "show": "rebuild the report of a run, or compare runs in one page",
    "data": "pack, check and measure the images that training reads",
    "embed": "features of every image of a source, in a folder of shards",
    "evaluate": "frozen features by the protocols of the paper",
    "convert": "weights of any format to any other, checked before they are kept",
}

DEBUG, VARIABLE = "--debug", "DINOV2_JAX_DEBUG"
"""Either shows the traceback of what is otherwise one line."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # What a test or a notebook puts there may have no such method.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = DEBUG in arguments or os.environ.get(VARIABLE, "") not in ("", "0")
    arguments = [text for text in arguments if text != DEBUG]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"choose from {', '.join(COMMANDS)}."
        )
        print(f"dinov2-jax: no command {command!r}; {hint}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"dinov2_jax.cli.{command}")
        return ended(module.main(rest))
    except errors.Error as error:
        message = shown(" ".join(str(error).split()))
        if debug:
            traceback.print_exc()
        print(f"dinov2-jax {command}: {message}", file=sys.stderr)
        return ended(1, message)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print(f"dinov2-jax {command}: interrupted.", file=sys.stderr)
        return ended(130, "interrupted")


def ended(code: int, reason: str = "") -> int:
    """The exit code, told to the other processes where the command has started any."""
    processes = sys.modules.get("dinov2_jax.processes")
    return processes.leave(code, reason) if processes else code


def usage() -> str:
    """What --help prints."""
    lines = [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "dinov2-jax: DINOv2 self-supervised pretraining in JAX",
            "",
            "usage: dinov2-jax COMMAND ...        dinov2-jax COMMAND --help",
            "",
            *lines,
            "",
            f"{DEBUG}, or {VARIABLE}=1, shows the traceback of every error.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
