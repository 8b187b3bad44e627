"""The first screen of a report: whether it learned, and its main numbers."""

import datetime
from collections.abc import Callable
from typing import Any

from dinov2_jax.viz import history, page, summary

NONE = "\N{EN DASH}"
CLASSES = {"yes": "yes", "partly": "partly", "no": "no", "not known yet": "soft"}
FACTS = ("started", "finished", "parameters", "devices", "device")


def single(run: history.Run, found: summary.Summary) -> list[str]:
    """Answer, k-NN bars and tiles of one run."""
    answer, why = summary.verdict(found)
    reasons = "".join(f"<p>{page.text(sentence)}</p>" for sentence in why)
    return [
        f'<h1>{page.text(run.name)}</h1><p class="soft">{page.text(_facts(run))}</p>',
        '<div class="first"><div class="card">',
        '<p class="soft">Did it learn?</p>',
        f'<p class="answer {CLASSES[answer]}">{answer.capitalize()}</p>{reasons}',
        f"</div>{_bars(found)}</div>",
        _tiles(run, found),
    ]


def several(runs: list[history.Run], found: list[summary.Summary]) -> list[str]:
    """A row a run; a click on a heading sorts."""
    columns: list[tuple[str, Callable[[summary.Summary], Any], Callable]] = [
        ("step", lambda s: s.step, _whole),
        ("k-NN now", lambda s: s.now, _percent),
        ("best", lambda s: s.best, _percent),
        ("untrained", lambda s: s.untrained, _percent),
        ("raw pixels", lambda s: s.raw_pixels, _percent),
        ("colour hist.", lambda s: s.color_histogram, _percent),
        ("DINO loss", lambda s: s.dino, _number),
        ("ln K", lambda s: s.log_prototypes, _number),
        ("images/s", lambda s: s.images_per_s, _speed),
        ("skipped images", lambda s: s.skipped_images, _whole),
        ("skipped steps", lambda s: s.skipped_steps, _whole),
    ]
    heads = "".join(f'<th data-sort="up">{name}</th>' for name, _, _ in columns)
    rows = []
    for run, numbers in zip(runs, found):
        answer, _ = summary.verdict(numbers)
        cells = "".join(
            f'<td data-value="{get(numbers)}">{show(get(numbers))}</td>'
            for _, get, show in columns
        )
        rows.append(
            f'<tr><td><b>{page.text(run.name)}</b></td><td class="{CLASSES[answer]}">'
            f"{answer}</td>{cells}<td>{numbers.state}</td></tr>"
        )
    table = (
        '<table class="runs"><thead><tr><th>run</th><th>learned?</th>'
        f"{heads}<th>state</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    note = "k-NN is the teacher's top-1 accuracy. A click on a heading sorts."
    return [
        f'<h1>{len(runs)} runs compared</h1><p class="soft">{note}</p>',
        f'<div class="card wide">{table}</div>',
    ]


def _bars(found: summary.Summary) -> str:
    """k-NN top-1 now, best and of the baselines as bars on one scale 0..1."""
    now = "now" if found.now_step is None else f"now, step {found.now_step:,}"
    best = "best" if found.best_step is None else f"best, step {found.best_step:,}"
    rows = [
        (now, found.now),
        (best, found.best),
        ("untrained", found.untrained),
        ("raw pixels", found.raw_pixels),
        ("colour histogram", found.color_histogram),
    ]
    cells = []
    for i, (name, value) in enumerate(rows):
        width = 0 if value is None else 100 * min(max(value, 0), 1)
        kind = ' class="now"' if i == 0 else ""
        cells.append(
            f'<tr{kind}><td>{name}</td><td><i style="width:{width:.1f}%"></i></td>'
            f"<td>{_percent(value)}</td></tr>"
        )
    table = f'<table class="bars">{"".join(cells)}</table>'
    return f'<div class="card"><p class="soft">k-NN top-1</p>{table}</div>'


def _tiles(run: history.Run, found: summary.Summary) -> str:
    """Step, loss, speed, what was skipped, and the state."""
    of = "" if found.steps is None else f"of {found.steps:,}"
    level = _number(found.log_prototypes)
    changed = datetime.datetime.fromtimestamp(
        (run.folder / "metrics.jsonl").stat().st_mtime, datetime.UTC
    )
    skipped = f"{_whole(found.skipped_images)} / {_whole(found.skipped_steps)}"
    tiles = [
        ("Step", _whole(found.step), of),
        ("DINO loss", _number(found.dino), f"ln K is {level}"),
        ("Images/s", _speed(found.images_per_s), f"median of {summary.RECENT} steps"),
        ("Skipped images / steps", skipped, "unreadable / not finite"),
        ("State", found.state, f"last written {changed:%Y-%m-%d %H:%M} UTC"),
    ]
    cells = (
        f'<div class="card"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'
        for name, value, note in tiles
    )
    return f"<dl>{''.join(cells)}</dl>"


def _facts(run: history.Run) -> str:
    """One line about the run, of what run.json holds."""
    facts = []
    for key in FACTS:
        value = run.info.get(key)
        if key == "parameters" and value:
            # Of the whole network, or by its parts.
            count = sum(value.values()) if isinstance(value, dict) else value
            facts.append(f"{count:,} parameters")
        elif value:
            facts.append(f"{key} {value}")
    return " \N{MIDDLE DOT} ".join(facts)


def _percent(value: float | None) -> str:
    """A share as per cent."""
    return NONE if value is None else f"{100 * value:.1f}&nbsp;%"


def _number(value: float | None) -> str:
    """A loss."""
    return NONE if value is None else f"{value:.2f}"


def _speed(value: float | None) -> str:
    """Images a second, with three digits at least."""
    return NONE if value is None else f"{value:,.{0 if value >= 100 else 1}f}"


def _whole(value: int | None) -> str:
    """A count."""
    return NONE if value is None else f"{value:,}"
