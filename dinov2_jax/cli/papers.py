"""What the paper and the model cards report for each architecture.

Source: arXiv:2304.07193, arXiv:2309.16588 and the reference's model card.
"""

SETS = {
    ("knn", "top1", ""): "ImageNet-1k",
    ("linear", "top1", ""): "ImageNet-1k",
    ("linear", "v2/top1", ""): "ImageNet-V2",
    ("retrieval", "map_hard", ""): "revisited Oxford",
    ("segmentation", "miou", ""): "ADE20k",
    ("segmentation_ms", "miou", ""): "ADE20k",
    ("depth", "rmse", "lin1"): "NYUd",
    ("depth", "rmse", "lin4"): "NYUd",
    ("depth", "rmse", "dpt"): "NYUd",
}
"""(task, metric, method) -> the set that these numbers are of."""

REPORTED = {
    "S/14": (0.790, 0.811, 0.708, 0.432, 0.443, 0.472, 0.449, 0.417, 0.356),
    "B/14": (0.821, 0.845, 0.749, 0.495, 0.473, 0.513, 0.399, 0.362, 0.317),
    "L/14": (0.835, 0.863, 0.776, 0.540, 0.477, 0.531, 0.384, 0.333, 0.293),
    "g/14": (0.835, 0.865, 0.784, 0.523, 0.490, 0.530, 0.344, 0.298, 0.279),
    "S/14 reg": (0.791, 0.809, 0.710, 0.395),
    "B/14 reg": (0.820, 0.846, 0.756, 0.510),
    "L/14 reg": (0.838, 0.867, 0.785, 0.557),
    "g/14 reg": (0.837, 0.871, 0.788, 0.582),
}
"""Architecture -> shares, and metres of depth, in the order of SETS; with registers no
number is given for pixels that is one of these protocols'."""


def reported(
    architecture: str, task: str, metric: str, method: str = ""
) -> tuple[float, str] | None:
    """(the paper's number, its set) for a metric, or None if it reports none.

    Args:
        architecture: such as `S/14 reg`.
        task, metric: of results.json.
        method: of a task that has several.
    """
    kinds = dict(zip(SETS, REPORTED.get(architecture, ())))
    found = kinds.get((task, metric, method))
    return None if found is None else (found, SETS[task, metric, method])
