"""Print what hostile PyTorch files do to `read_pth`: a table in Markdown.

python benchmarks/hostile_files.py [--out hostile_files.md]

The files are those of the tests (`tests/hostile.py`), made one after another in a folder
that is removed at the end. Each row has the size of the file, the most memory that Python
held while reading it, and the error's one line. The command fails if a file is read or if
one got something to run.
"""

import argparse
import importlib
import pathlib
import sys
import tempfile
import tracemalloc

from dinov2_jax.convert import inert, pth

TESTS = pathlib.Path(__file__).parent.parent / "tests"


def outcome(path: pathlib.Path) -> tuple[str, int]:
    """The error's kind and line without the path, and the peak of memory in bytes."""
    tracemalloc.start()
    try:
        pth.read_pth(path)
        line = "was read"
    except inert.BadFile as error:
        line = f"{type(error).__name__}: {str(error).removeprefix(f'{path}: ')}"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return line, peak


def rows(folder: pathlib.Path) -> list[str]:
    """The table's rows; each file is removed once it has been read.

    Raises: SystemExit if a file was read or ran something.
    """
    sys.path.insert(0, str(TESTS))
    hostile = importlib.import_module("hostile")
    lines = []
    for number, (name, make, _) in enumerate(hostile.ATTACKS):
        path = folder / f"{number}.pth"
        make(path)
        size = path.stat().st_size if path.is_file() else 0
        line, peak = outcome(path)
        if line == "was read" or hostile.tf.canary(path).exists():
            raise SystemExit(
                f"{name}: {line}; the canary is {hostile.tf.canary(path)}."
            )
        if path.is_file():
            path.unlink()
        cells = (name, f"{size:,}", f"{peak / 2**20:.1f}", line)
        lines.append(
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        )
    return lines


def main() -> None:
    """Make the files, read them, print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=pathlib.Path, help="a file in place of the screen"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        body = rows(pathlib.Path(folder))
    head = (
        "| attack | file, bytes | peak memory, MiB | outcome |\n|---|---:|---:|---|\n"
    )
    table = head + "\n".join(body) + f"\n\n{len(body)} files, none read, nothing run.\n"
    if given.out:
        part = given.out.with_name(given.out.name + ".part")
        part.write_text(table)
        part.replace(given.out)
    else:
        print(table, end="")


if __name__ == "__main__":
    main()
