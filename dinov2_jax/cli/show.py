"""dinov2-jax show run WORKDIR...: rebuild a run's report, or compare runs in one page."""

import argparse
import contextlib
import pathlib

from dinov2_jax import errors
from dinov2_jax.viz import report


def main(given: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="dinov2-jax show", description=__doc__)
    parser.add_argument("what", choices=["run"])
    parser.add_argument("workdirs", nargs="+", type=_path, help="folders of runs")
    parser.add_argument("--out", type=_path, help="page to write")
    options = parser.parse_args(given)
    with contextlib.ExitStack() as stack:
        for folder in options.workdirs:
            stack.enter_context(errors.at(folder))
        if options.out:
            stack.enter_context(errors.at(options.out, "--out"))
        print(report.write(options.workdirs, options.out))
    return 0


def _path(text: str) -> pathlib.Path:
    """A path, `~` being the home."""
    return pathlib.Path(text).expanduser()
