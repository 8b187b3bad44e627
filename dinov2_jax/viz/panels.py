"""One panel of a figure: a metric over the steps, of one run or of several."""

import dataclasses
from typing import Any

import numpy as np

COLORS = ("#2f6db3", "#d0622f", "#2f8a63", "#8b5fb5", "#b3872a", "#4f9bb0", "#b34a6b")
INK, PALE, ALARM = "#3d444d", "#c9ced6", "#c92a2a"
DOTS = 40  # points; shorter series show them
NOISY = 120  # points; longer series are drawn pale, with their running mean
DECADES = 30  # ratio of largest to smallest from which norms get a log axis
SMOOTHED = ("loss", "grad_norm", "health", "time")  # groups with that running mean
SHARES = (  # metrics in 0..1 that are read as per cent, as are all of k-NN
    "health/agreement",
    "health/dead_prototypes_dino",
    "health/dead_prototypes_ibot",
    "time/data_wait_share",
)
TITLES = {
    "loss/total": "total, the weighted sum",
    "loss/dino": "DINO, global + local",
    "loss/dino_global": "DINO, global part",
    "loss/dino_local": "DINO, local part",
    "knn/top1": "k-NN top-1 of the teacher",
    "sched/lr": "learning rate",
    "sched/last_layer_lr": "learning rate, last layer",
    "sched/ema_rate": "EMA rate, 1 - momentum",
    "sched/momentum": "teacher momentum",
    "sched/teacher_temp": "teacher temperature",
    "time/images_per_s": "images/s",
    "time/step_s": "step, seconds",
    "time/data_wait_s": "waiting for data, seconds",
    "time/data_wait_share": "waiting for data, share of time",
    "memory/peak_gib": "peak, GiB",
    "health/agreement": "student and teacher agree",
    "health/rejected": "rejected steps since the line before",
}
WORDS = {"dino": "DINO", "ibot": "iBOT", "koleo": "KoLeo", "kl": "KL", "knn": "k-NN"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.edgecolor": PALE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names of runs and metrics may hold a dollar sign
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One metric of one run."""

    color: str
    steps: np.ndarray  # [n] int64, rising
    values: np.ndarray  # [n] float64
    levels: list[tuple[str, float]]  # words and height of what it compares with


def draw(ax: Any, key: str, lines: list[Line]) -> None:
    """Fills one panel.

    Args:
        ax: Matplotlib's axes, empty.
        key: name of the metric.
        lines: one a run, at least one.
    """
    from matplotlib import ticker

    group, _, tail = key.rpartition("/")
    words = " ".join(WORDS.get(word, word) for word in tail.split("_"))
    bad = sum(np.count_nonzero(~np.isfinite(line.values)) for line in lines)
    title = TITLES.get(key, words)
    ax.set_title(f"{title} ({bad} not finite)" if bad else title)
    for line in lines:
        _plot(ax, line, group in SMOOTHED and key != "health/rejected")
    _levels(ax, lines)
    finite = np.concatenate([line.values[np.isfinite(line.values)] for line in lines])
    ratio = group == "grad_norm" or tail.startswith("update_ratio")
    if ratio and len(finite) and 0 < DECADES * finite.min() < finite.max():
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        ax.margins(y=0.12)
        ax.yaxis.set_major_locator(ticker.MaxNLocator(5))
    share = group == "knn" or key in SHARES
    ax.yaxis.set_major_formatter(
        lambda y, _: f"{100 * y:.4g} %" if share else f"{y:.5g}"
    )
    ax.annotate(
        "step",
        (0, 0),
        (-6, -11.5),
        "axes fraction",
        "offset points",
        ha="right",
        size=7.5,
    )
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.tick_params(length=0)


def _plot(ax: Any, line: Line, smoothed: bool) -> None:
    """Draws one line, with gaps and red marks where it is not finite."""
    finite = np.isfinite(line.values)
    values = np.where(finite, line.values, np.nan)
    if smoothed and len(values) > NOISY:
        ax.plot(line.steps, values, color=line.color, alpha=0.3, linewidth=0.8)
        ax.plot(line.steps, _running_mean(values), color=line.color)
    else:
        marker = "o" if len(values) <= DOTS else None
        ax.plot(line.steps, values, marker=marker, ms=3, color=line.color)
    bad = line.steps[~finite]
    place = ax.get_xaxis_transform()
    ax.plot(bad, 0 * bad, "|", color=ALARM, ms=9, transform=place, clip_on=False)


def _levels(ax: Any, lines: list[Line]) -> None:
    """Draws levels dashed, with words: grey where all runs have the same."""
    for words, height in sorted({level for line in lines for level in line.levels}):
        found = [line for line in lines if (words, height) in line.levels]
        color = INK if len(found) == len(lines) else found[0].color
        ax.axhline(height, color=color, linewidth=0.9, linestyle=(0, (5, 3)), alpha=0.8)
        ax.annotate(
            words,
            (1, height),
            (-2, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color=color,
        )


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values of a centred window; NaN stays NaN."""
    window = np.ones(max(5, len(values) // 40) | 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, "same")
    count = np.convolve(finite.astype(float), window, "same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)
