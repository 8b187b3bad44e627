"""Curves of one run, or of several over each other, as PNG pictures."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from dinov2_jax import errors
from dinov2_jax.viz import history, panels

ORDER = ("loss", "knn", "sched", "grad_norm", "health", "time")
# What gives a metric its meaning, by the metric: (key of the level, words).
LEVELS = {
    "loss/dino": [("health/log_prototypes_dino", "ln K")],
    "loss/ibot": [("health/log_prototypes_ibot", "ln K")],
    "health/teacher_entropy_dino": [("health/log_prototypes_dino", "ln K")],
    "health/teacher_entropy_ibot": [("health/log_prototypes_ibot", "ln K")],
    "knn/top1": [
        ("knn/untrained_top1", "untrained"),
        ("knn/raw_pixels_top1", "raw pixels"),
        ("knn/color_histogram_top1", "colour histogram"),
    ],
}
WIDTH, ROW, TALL = 10.0, 2.3, 3.4  # inches: of a figure, height of rows
LEFT, RIGHT, TOP, BOTTOM = 0.62, 0.12, 0.38, 0.32  # inches around each panel
LEGEND = 0.26  # inches, height of a line of names
NAMES = 3  # names in a line of the legend

History = Sequence[Mapping[str, Any]]


def curves(histories: Mapping[str, History], *, dpi: int = 150) -> dict[str, bytes]:
    """One figure a group of metrics, one panel a metric, one line a run.

    The group is what stands before the first slash of a key; keys without one form
    the group `other`. `loss/dino`, the sum of the global and the local term, is added:
    both are parts of one mean, so that only their sum compares with ln K. The
    constants in LEVELS are drawn as dashed lines in the panels of other metrics.
    Values that are not finite are gaps with a red mark below, counted in the title of
    the panel. A long and noisy series is drawn pale below its running mean.

    Args:
        histories: by the run's name, one dict a logged step with `step` (int) and
            metrics; a line need not hold every metric. Values that are text are not
            drawn. Where a step comes twice the later line holds.
        dpi: pixels an inch; the figures are 10 inches wide.
    Returns: PNG by group: those of ORDER, then others by name; a group without a
        number is left out, so an empty history gives {}.
    Raises: ValueError if a line has no `step`.
    """
    for run, metrics in histories.items():
        for i, line in enumerate(metrics):
            if "step" not in line:
                raise errors.InputError(
                    f"{run}: dict {i} of its history lacks `step`; add it."
                )
    runs = [with_derived(metrics) for metrics in histories.values()]
    levels = {key for found in LEVELS.values() for key, _ in found}
    keys = {key for metrics in runs for line in metrics for key in line}
    groups: dict[str, dict[str, list[panels.Line]]] = {}
    for key in sorted(keys - levels - {"step"}, key=_rank):
        lines = _lines(runs, key)
        if lines:
            group = key.split("/")[0] if "/" in key else "other"
            groups.setdefault(group, {})[key] = lines
    rank = {group: i for i, group in enumerate(ORDER)}
    order = sorted(groups, key=lambda group: (rank.get(group, len(ORDER)), group))
    return {group: _figure(groups[group], list(histories), dpi) for group in order}


def with_derived(metrics: History) -> list[dict[str, Any]]:
    """History with `loss/dino` and `knn/untrained_top1` (top-1 at step 0) added."""
    out = []
    for line in metrics:
        line = dict(line)
        parts = [line.get(f"loss/dino_{part}", 0.0) for part in ("global", "local")]
        values = [history.number(part) for part in parts]
        if parts != [0.0, 0.0] and "loss/dino" not in line and None not in values:
            line["loss/dino"] = sum(values)
        if line["step"] == 0 and "knn/top1" in line:
            line["knn/untrained_top1"] = line["knn/top1"]
        out.append(line)
    return out


def _lines(runs: Sequence[History], key: str) -> list[panels.Line]:
    """Lines of a metric of the runs that have it; a run has one colour everywhere."""
    lines = []
    for i, metrics in enumerate(runs):
        steps, values = history.series(metrics, key)
        if len(steps):
            levels = [
                (words, history.last(metrics, level))
                for level, words in LEVELS.get(key, [])
            ]
            levels = [level for level in levels if level[1] is not None]
            color = panels.COLORS[i % len(panels.COLORS)]
            lines.append(panels.Line(color, steps, values, levels))
    return lines


def _rank(key: str) -> tuple[int, str]:
    """Place of a panel: the total first, then what has a level, then the others."""
    return (0 if key == "loss/total" else 1 if key in LEVELS else 2), key


def _figure(metrics: dict[str, list[panels.Line]], runs: list[str], dpi: int) -> bytes:
    """PNG of the panels of a group, at most three in a row; k-NN top-1 has its own."""
    import matplotlib
    from matplotlib import figure, lines

    whole = [key for key in metrics if key == "knn/top1" or len(metrics) == 1]
    rest = [key for key in metrics if key not in whole]
    columns = 2 if len(rest) in (2, 4) else 3
    rows = [[key] for key in whole]
    rows += [rest[i : i + columns] for i in range(0, len(rest), columns)]
    tall = [TALL if row == ["knn/top1"] else ROW for row in rows]
    legend = LEGEND * -(-len(runs) // NAMES) if len(runs) > 1 else 0.0
    height = legend + sum(tall)
    with matplotlib.rc_context(panels.STYLE):
        fig = figure.Figure((WIDTH, height), dpi=dpi)
        for i, row in enumerate(rows):
            bottom = sum(tall[i + 1 :]) + BOTTOM
            inner = tall[i] - TOP - BOTTOM
            wide = WIDTH if row[0] in whole else WIDTH / columns
            for j, key in enumerate(row):
                across = ((j * wide + LEFT) / WIDTH, (wide - LEFT - RIGHT) / WIDTH)
                place = (across[0], bottom / height, across[1], inner / height)
                panels.draw(fig.add_axes(place), key, metrics[key])
        if legend:
            colors = [panels.COLORS[i % len(panels.COLORS)] for i in range(len(runs))]
            marks = [lines.Line2D([], [], color=color) for color in colors]
            # Matplotlib leaves labels out that start with an underscore.
            labels = [f" {run}" for run in runs]
            fig.legend(marks, labels, loc="upper left", ncols=NAMES)
        out = io.BytesIO()
        # No version in the file: equal runs give equal bytes.
        fig.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
