"""The loop: batches in, states and metrics out. Files and signals live here."""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from dinov2_jax.train.history import History
from dinov2_jax.train.progress import Progress

Metrics = dict[str, float]


class NotFinite(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


@dataclasses.dataclass
class Stop:
    """Why a run ends before its last step; falsy as long as it does not."""

    reason: str = ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def on_signals(self) -> "Stop":
        """SIGTERM and SIGINT end the run after the step; a second one at once."""

        def handle(number, frame):
            if self.reason:
                os._exit(128 + number)
            self.reason = signal.Signals(number).name

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
        return self


@dataclasses.dataclass(frozen=True)
class Probe:
    """Something to measure now and then: `measure(state)` every so many steps."""

    every: int
    measure: Callable[[Any], Metrics]


@dataclasses.dataclass
class Meter:
    """Seconds spent since the last reading."""

    began: float = dataclasses.field(default_factory=time.monotonic)
    steps: int = 0
    waited: float = 0.0

    def read(self, images: int) -> Metrics:
        """Rates since the last reading, and a new start."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        steps, waited = max(self.steps, 1), self.waited
        self.began, self.steps, self.waited = time.monotonic(), 0, 0.0
        return {
            "time/images_per_s": images * steps / seconds,
            "time/step_s": seconds / steps,
            "time/data_wait_s": waited / steps,
            "time/data_wait_share": waited / seconds,
            "memory/peak_gib": _peak_memory() / 2**30,
        }


def _peak_memory() -> int:
    """Bytes at the peak: of the first device where it tells, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(
    state: Any,
    *,
    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
    batches: Iterator[tuple[Any, int]],
    start: int,
    stop: int,
    images: int,
    history: History,
    progress: Progress,
    save: Callable[[int, Any, float | None], None],
    ended: Callable[[int], str],
    log_every: int = 10,
    save_every: int = 0,
    probes: Sequence[Probe] = (),
    max_rejected: int = 5,
) -> tuple[Any, int, str]:
    """Train from step `start` to `stop` or until `ended` gives a reason.

    The next batch is fetched while the device works; its wait is measured. The
    device is at most one step behind, so that a non-finite step is seen at once.

    Args:
        state: before step `start`.
        step: jitted; (state, batch) -> (state, scalars). The old state is given up.
        batches: (batch on the devices, records skipped in it), from step `start`.
        start, stop: updates done, and to be done in all.
        images: a step over all devices, for images/s.
        history: where metrics go.
        progress: where the user looks.
        save: (step, state, k-NN or None) writes a checkpoint.
        ended: (step) -> why the run should end now, "" to go on.
        log_every, save_every: steps between; 0 only at the end.
        probes: measured at the start of a new run, every so many steps, at the end.
        max_rejected: non-finite steps in a row that are too many.
    Returns: (state, steps done, reason or "" when it came to its end).
    Raises: NotFinite naming step and term; the caller's checkpoints stay.
    """
    skipped, pending = 0, (start, {})
    if start == 0:
        found = measured(probes, state, 0, stop)
        if found:
            history.write(0, found)
            progress.show(0, summary(found))
    meter = Meter()
    for done in range(start + 1, stop + 1):
        before = time.monotonic()
        batch, lost = next(batches)
        meter.waited += time.monotonic() - before
        skipped += lost
        state, terms = step(state, batch)
        meter.steps += 1
        reason = ended(done)
        last = done == stop or bool(reason)
        _refuse_rejected(*pending, max_rejected)
        pending, found = (done, terms), {}
        if last:
            _refuse_rejected(*pending, max_rejected)
        if done % log_every == 0 or last:
            found = {name: float(x) for name, x in jax.device_get(terms).items()}
            found["data/skipped"] = skipped
            skipped = 0
            found |= meter.read(images)
        pause = time.monotonic()
        found |= measured(probes, state, done, stop)
        if found:
            history.write(done, found)
            progress.show(done, summary(found))
        if last or (save_every and done % save_every == 0):
            save(done, state, found.get("knn/top1"))
        meter.began += time.monotonic() - pause
        progress.update(done)
        if reason:
            return state, done, reason
    return state, stop, ""


def measured(probes: Sequence[Probe], state: Any, done: int, stop: int) -> Metrics:
    """What the probes that are due say: every so many steps, first and last."""
    found: Metrics = {}
    for probe in probes:
        if probe.every and (done % probe.every == 0 or done == stop):
            found |= probe.measure(state)
    return found


def summary(found: Metrics) -> str:
    """The few figures for a progress line."""
    shown = {
        "loss/total": "loss {:.4f}",
        "loss/dino_local": "dino {:.4f}",
        "loss/ibot": "ibot {:.4f}",
        "loss/koleo": "koleo {:.3f}",
        "knn/top1": "k-NN {:.1%}",
        "time/images_per_s": "{:.1f} images/s",
        "time/data_wait_share": "data wait {:.0%}",
    }
    return "  ".join(text.format(found[k]) for k, text in shown.items() if k in found)


def _refuse_rejected(done: int, terms: dict[str, jax.Array], most: int) -> None:
    """Raise NotFinite, naming step and terms, if too many steps were rejected."""
    if not terms or int(terms["health/rejected"]) < most:
        return
    values = {name: float(x) for name, x in jax.device_get(terms).items()}
    bad = [f"{name}={x}" for name, x in values.items() if not math.isfinite(x)]
    raise NotFinite(
        f"Step {done}: {most} steps in a row were not finite and were not applied "
        f"({', '.join(bad)}). Lower optim.base_lr, check the data, or compute in "
        "train.dtype=float32; the last good checkpoint is kept."
    )
