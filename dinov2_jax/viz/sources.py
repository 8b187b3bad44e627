"""A picture of a data source: sizes of its images, formats, speed of each stage."""

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dinov2_jax import writing

STAGES = ("read", "decode", "crops", "host", "device")
QUANTILES = ("smallest", "1/4", "median", "3/4", "largest")


def write(path: pathlib.Path, found: Mapping[str, Any]) -> None:
    """The picture as a PNG file, whole or not at all.

    Args:
        path: ends in .png.
        found: `height`, `width` [5] quantiles in pixels; `formats` name -> images;
            `images_per_cpu_s` stage -> rate for each of STAGES.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    sizes, formats, speeds = figure.subplots(1, 3)
    for name in ("height", "width"):
        sizes.plot(QUANTILES, found[name], marker="o", label=name)
    sizes.set(title="size of the images", ylabel="pixels", ylim=(0, None))
    sizes.legend()
    formats.bar(list(found["formats"]), list(found["formats"].values()))
    formats.set(title="formats", ylabel="images of the sample")
    rates = [found["images_per_cpu_s"][stage] for stage in STAGES]
    bars = speeds.barh(STAGES, rates)
    speeds.bar_label(bars, [f" {rate:.0f}" for rate in rates])
    speeds.set(title="images per second of one core", xscale="log")
    speeds.invert_yaxis()
    with writing.replacing(path) as part:
        FigureCanvasAgg(figure).print_png(part)
