"""The first question to a run: did it learn?"""

import dataclasses

import numpy as np

from dinov2_jax.viz import curves, history

RECENT = 20  # logged steps whose median is the speed
BELOW = 0.99  # of ln K: a loss must lie below that, for it is noisy
FALLING = 0.02  # of k-NN top-1 below its best: no longer noise of the evaluation


@dataclasses.dataclass(frozen=True)
class Summary:
    """Numbers of a run; None where its files do not tell.

    The top-1 numbers are shares in 0..1 of the same k-NN evaluation.
    """

    step: int | None  # of the last logged line
    steps: int | None  # planned
    now: float | None  # k-NN top-1 of the teacher, last measured
    now_step: int | None
    best: float | None
    best_step: int | None
    untrained: float | None  # at step 0
    raw_pixels: float | None
    color_histogram: float | None
    dino: float | None  # last loss, global + local
    log_prototypes: float | None  # ln K: the loss of a head that tells nothing apart
    images_per_s: float | None  # median of the last RECENT
    skipped_images: int | None
    skipped_steps: int | None  # steps that were rejected
    state: str  # finished, or not finished with the last step


def summary(run: history.Run) -> Summary:
    """Numbers of a run, from its files alone.

    Source of each: `knn/top1`, `knn/raw_pixels_top1`, `knn/color_histogram_top1`,
    `loss/dino_*`, `health/log_prototypes_dino`, `time/images_per_s`,
    `data/skipped` (images since the line before), `health/rejected` (0 if the step
    was taken) in metrics.jsonl; `steps` and `finished` in run.json, else
    `train.steps` in config.json.
    """
    metrics = curves.with_derived(run.metrics)
    at, top1 = history.series(metrics, "knn/top1")
    at, top1 = at[np.isfinite(top1)], top1[np.isfinite(top1)]
    best = int(top1.argmax()) if len(top1) else None
    speed = history.series(metrics, "time/images_per_s")[1]
    speed = speed[np.isfinite(speed)][-RECENT:]
    skipped = history.series(metrics, "data/skipped")[1]
    rejected = history.series(metrics, "health/rejected")[1]
    step = max((line["step"] for line in metrics), default=None)
    steps = run.info.get("steps", history.flat(run.config).get("train.steps"))
    return Summary(
        step=step,
        steps=steps if type(steps) is int else None,
        now=float(top1[-1]) if len(top1) else None,
        now_step=int(at[-1]) if len(top1) else None,
        best=None if best is None else float(top1[best]),
        best_step=None if best is None else int(at[best]),
        untrained=history.last(metrics, "knn/untrained_top1"),
        raw_pixels=history.last(metrics, "knn/raw_pixels_top1"),
        color_histogram=history.last(metrics, "knn/color_histogram_top1"),
        dino=history.last(metrics, "loss/dino"),
        log_prototypes=history.last(metrics, "health/log_prototypes_dino"),
        images_per_s=float(np.median(speed)) if len(speed) else None,
        skipped_images=int(np.nansum(skipped)) if len(skipped) else None,
        skipped_steps=int(np.nansum(rejected)) if len(rejected) else None,
        state=_state(run, step, steps),
    )


def verdict(found: Summary) -> tuple[str, list[str]]:
    """Answer to "did it learn?" and the sentences behind it.

    Returns: `yes` (better than untrained and all baselines, loss below ln K),
        `partly` (better than untrained, but not all of that), `no` (not better than
        untrained) or `not known yet`; and why.
    """
    if found.now is None or found.now_step == 0:
        why = "No k-NN was measured after step 0, and the loss alone says little."
        return "not known yet", [why, *_loss(found)]
    if found.untrained is None:
        why = "There is no k-NN of the untrained network (step 0) to compare with."
        return "not known yet", [why, *_loss(found)]
    others = [
        ("raw pixels", found.raw_pixels),
        ("colour histograms", found.color_histogram),
    ]
    others = [(name, value) for name, value in others if value is not None]
    gains = [("the untrained network", found.untrained), *others]
    said = ", ".join(f"{_points(found.now - value)} {name}" for name, value in gains)
    why = [f"k-NN top-1 is {100 * found.now:.1f} %: {said}."]
    falling = found.best - found.now > FALLING
    if falling:
        best = f"{100 * found.best:.1f} % at step {found.best_step:,}"
        why.append(f"It was {best}: it falls.")
    why += _loss(found)
    if found.now <= found.untrained:
        return "no", why
    ahead = all(found.now > value for _, value in others)
    stuck = below_log_prototypes(found) is False
    return ("yes" if ahead and not stuck and not falling else "partly"), why


def below_log_prototypes(found: Summary) -> bool | None:
    """Whether the DINO loss is clearly below ln K; None where one is not known."""
    if found.dino is None or found.log_prototypes is None:
        return None
    return found.dino < BELOW * found.log_prototypes


def _points(gain: float) -> str:
    """A difference of shares in words."""
    side = "above" if gain >= 0 else "below"
    return f"{abs(100 * gain):.1f} points {side}"


def _loss(found: Summary) -> list[str]:
    """What the DINO loss says against ln K."""
    below = below_log_prototypes(found)
    if below is None:
        return []
    loss, level = f"{found.dino:.2f}", f"ln K = {found.log_prototypes:.2f}"
    if below:
        return [f"The DINO loss, {loss}, is below {level}."]
    why = "the head does hardly better than the uniform distribution"
    return [f"The DINO loss, {loss}, is not clearly below {level}: {why}."]


def _state(run: history.Run, step: int | None, steps: object) -> str:
    """Whether the run is over, as far as its files tell."""
    if run.info.get("finished") or (None not in (step, steps) and step == steps):
        return "finished"
    return "not started" if step is None else "not finished"
