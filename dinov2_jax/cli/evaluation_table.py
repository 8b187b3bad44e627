"""dinov2-jax evaluate table: several evaluations beside what the paper reports."""

import json
import pathlib
from collections.abc import Sequence

from dinov2_jax import errors
from dinov2_jax.cli import papers, results, workdir
from dinov2_jax.escaping import shown
from dinov2_jax.viz import page

HEADS = ("run", "architecture", "task", "val", "metric", "here", "paper", "paper's set")


def show(folders: Sequence[pathlib.Path], out: pathlib.Path | None) -> int:
    """Print the table in Markdown, and write it as a page if asked; returns 0."""
    rows = [line for folder in found(folders) for line in lines(folder)]
    for row in (HEADS, ["---"] * len(HEADS), *rows):
        print(f"| {' | '.join(map(shown, row))} |")
    if out is not None:
        title = "Evaluations"
        body = [
            f"<h1>{title}</h1>",
            f'<div class="card">{page.grid(HEADS, rows)}</div>',
        ]
        with errors.at(out, "--out"):
            out.parent.mkdir(parents=True, exist_ok=True)
            workdir.write_text(out, page.document(title, body))
    return 0


def found(folders: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Folders with results.json: those given, and those inside them.

    Raises: ValueError if there is none, or a folder holds none.
    """
    if not folders:
        raise errors.InputError(
            "Give folders of results: dinov2-jax evaluate table DIR ..."
        )
    all_of_them = []
    for folder in folders:
        here = sorted(p.parent for p in folder.expanduser().rglob("results.json"))
        if not here:
            raise errors.InputError(f"{folder} holds no results.json of an evaluation.")
        all_of_them += here
    return all_of_them


def lines(folder: pathlib.Path) -> list[list[str]]:
    """A row for the metric that counts, and one for each that the paper has too.

    Raises: ValueError if results.json is damaged.
    """
    path = folder / "results.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        method = about["settings"].get("method", "")
        rows = []
        for metric, value in about["metrics"].items():
            known = papers.reported(
                about["architecture"], about["task"], metric, method
            )
            if known is None and metric != about["metric"]:
                continue
            paper = (results.shown(metric, known[0]), known[1]) if known else ("", "")
            about_it = (about["architecture"], about["task"], about["val"], metric)
            rows.append([folder.name, *about_it, results.shown(metric, value), *paper])
        return rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.InputError(
            f"{path} is damaged ({error!r}); evaluate again."
        ) from error
