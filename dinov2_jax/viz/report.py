"""The report of a run, or of several: one HTML file from the files of the runs."""

import os
import pathlib
import re
from collections.abc import Sequence

from dinov2_jax import writing
from dinov2_jax.viz import curves, headline, history, page, summary

CURVES = {
    "loss": (
        "Losses",
        (
            "A DINO or iBOT loss that stays at ln K means a head that has not left the "
            "uniform distribution, whatever the total does."
        ),
    ),
    "knn": (
        "k-NN over time",
        (
            "The teacher's frozen features, against the untrained network and against "
            "features that need no training."
        ),
    ),
    "sched": ("Schedules", "What the optimiser and the teacher were told."),
    "grad_norm": ("Gradient norms", "Before clipping, by sub-network."),
    "health": (
        "Health",
        (
            "Teacher entropy at ln K, or KL to uniform at ln K with most prototypes "
            "dead, are the two forms of collapse."
        ),
    ),
    "time": ("Speed", "Waiting for data near the step's time: the input is too slow."),
}
PICTURES = {
    "crops": (
        "Crops",
        "What the model sees; grey patches are hidden from the student.",
    ),
    "pca": (
        "PCA of the patch features",
        "First three components as red, green and blue: like colours, like features.",
    ),
    "pca_untrained": (
        "PCA of the patch features before training",
        "The same pictures through the network as it was at step 0.",
    ),
}


def write(
    workdirs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None
) -> pathlib.Path:
    """Writes the report of runs as one HTML file that needs no other.

    Of one run the curves are also written to its pictures/curve_GROUP.png. A page
    about several runs compares them, and writes nothing into their folders.

    Args:
        workdirs: folders of runs with metrics.jsonl; config.json, run.json and
            pictures/*.png are shown where they are. run.json may hold `command`,
            `continue`, `versions`, `git`, `started`, `finished`, `parameters`,
            `devices`, `steps` (planned) and whatever else should be on the page.
        out: the file; None is WORKDIR/report.html for one run, and comparison.html
            beside the first WORKDIR for several.
    Returns: the file's path.
    Raises: ValueError if a workdir is no run or holds a broken file, see
        `history.read`.
    """
    runs = history.read(workdirs)
    first = runs[0].folder
    if out is None:
        single = first / "report.html"
        out = single if len(runs) == 1 else first.parent / "comparison.html"
    figures = curves.curves({run.name: run.metrics for run in runs})
    if len(runs) == 1:
        for group, png in figures.items():
            name = re.sub(r"[^\w-]", "_", group)
            _replace(first / "pictures" / f"curve_{name}.png", png)
    title = " | ".join(run.name for run in runs)
    if len(runs) == 1:
        middle = [*_pictures(runs), *_curves(figures), "<h2>Config</h2>"]
        middle.append(_config(runs[0]))
    else:
        middle = [*_curves(figures), "<h2>Where the configs differ</h2>"]
        middle += [_differences(runs), *_pictures(runs)]
    body = [*_top(runs), *middle, "<h2>How it was run</h2>", *_facts(runs)]
    out = pathlib.Path(out)
    _replace(out, page.document(title, body).encode())
    return out


def _top(runs: list[history.Run]) -> list[str]:
    """First screen: title, answer, numbers, and what of the files was not read."""
    if len(runs) == 1:
        parts = headline.single(runs[0], summary.summary(runs[0]))
    else:
        parts = headline.several(runs, [summary.summary(run) for run in runs])
    for run in runs:
        if run.unread:
            where = ", ".join(str(line) for line in run.unread[:10])
            more = ", ..." if len(run.unread) > 10 else ""
            note = (
                f"{run.name}: {len(run.unread)} of the lines of metrics.jsonl could "
                f"not be read and are left out (line {where}{more}). A last line that "
                "is cut off is normal while the job writes."
            )
            parts.append(f'<p class="card note">{page.text(note)}</p>')
    return parts


def _pictures(runs: list[history.Run]) -> list[str]:
    """Pictures of each run; crops and PCA maps first."""
    parts = []
    rank = list(PICTURES)
    for run in runs:
        found = [(_stem(path), path) for path in run.pictures]
        found.sort(key=lambda pair: (_place(pair[0], rank), pair[1].name))
        if found and len(runs) > 1:
            parts.append(f"<h3>{page.text(run.name)}</h3>")
        for stem, path in found:
            title, caption = PICTURES.get(stem, (stem.replace("_", " "), ""))
            title += path.stem.removeprefix(stem).replace("_", " ")
            parts.append(page.figure("picture", title, caption, path.read_bytes()))
    return ["<h2>Pictures</h2>", *parts] if parts else []


def _stem(path: pathlib.Path) -> str:
    """Name of a picture without the number of the step it may end in."""
    return re.sub(r"[_-]?\d+$", "", path.stem)


def _place(name: str, order: list[str]) -> int:
    """Place in an order; unknown names come last."""
    return order.index(name) if name in order else len(order)


def _curves(figures: dict[str, bytes]) -> list[str]:
    """All curves with what to look for."""
    if not figures:
        return []
    parts = ["<h2>Curves</h2>"]
    for group, png in figures.items():
        title, caption = CURVES.get(group, (group.replace("_", " "), ""))
        parts.append(page.figure("curve", title, caption, png))
    return parts


def _facts(runs: list[history.Run]) -> list[str]:
    """Versions and commands of each run; folded where there are several."""
    if len(runs) == 1:
        return [f'<div class="card">{_started(runs[0])}</div>']
    parts = [page.folded(run.name, _started(run)) for run in runs]
    return [f'<div class="card">{"".join(parts)}</div>']


def _config(run: history.Run) -> str:
    """Config of one run, a folded table for each of its parts."""
    if not run.config:
        return '<p class="card">This run has no config.json.</p>'
    parts, plain = [], []
    for name, value in run.config.items():
        if isinstance(value, dict) and value:
            rows = list(history.flat(value).items())
            parts.append(page.folded(f"{name} ({len(rows)})", page.table(rows)))
        else:
            plain.append((name, value))
    if plain:
        parts.insert(0, page.folded(f"top level ({len(plain)})", page.table(plain)))
    return f'<div class="card">{"".join(parts)}</div>'


def _differences(runs: list[history.Run]) -> str:
    """Table of the config keys whose values are not the same in all runs."""
    missing = [run.name for run in runs if not run.config]
    flats = [history.flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    rows = []
    for key in keys:
        # As text: 1 and 1.0 and true are equal in Python, but not the same setting.
        row = [page.text(flat[key]) if key in flat else None for flat in flats]
        if len(set(row)) > 1:
            rows.append([key, *(flat.get(key, "not set") for flat in flats)])
    if missing:
        return f'<p class="card">No config.json: {page.text(", ".join(missing))}.</p>'
    if not rows:
        return f'<p class="card">All {len(keys)} values are the same.</p>'
    note = f"{len(rows)} of {len(keys)} values differ; the others are the same."
    heads = ["", *(run.name for run in runs)]
    return f'<div class="card"><p>{note}</p>{page.grid(heads, rows)}</div>'


def _started(run: history.Run) -> str:
    """Commands, versions and all else of run.json."""
    if not run.info:
        return "<p>This run has no run.json.</p>"
    parts = []
    for key, title in (("command", "Command"), ("continue", "To go on")):
        if key in run.info:
            parts.append(f"<h3>{title}</h3><pre>{page.text(run.info[key])}</pre>")
    rest = {k: v for k, v in run.info.items() if k not in ("command", "continue")}
    if rest:
        parts.append(f"<h3>Facts</h3>{page.table(list(history.flat(rest).items()))}")
    return "".join(parts)


def _replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing.replacing(path, shared=True) as part:
        part.write_bytes(content)
