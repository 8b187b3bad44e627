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
    """When a run ends before its last step: a signal, a step, or a time.

    Fields: `at` step, 0 for none; `minutes` from now, 0 for none; `agree` tells
    whether a flag is set on any process, None for a single one; `every` so many steps
    the processes ask each other, so that all end at the same one.
    """

    at: int = 0
    minutes: float = 0.0
    agree: Callable[[bool], bool] | None = None
    every: int = 1
    signal: str = ""
    began: float = dataclasses.field(default_factory=time.monotonic)

    def on_signals(self) -> "Stop":
        """SIGTERM and SIGINT end the run after the step; a second one at once."""

        def handle(number, frame):
            name = signal.Signals(number).name
            if self.signal:
                line = f"\ndinov2-jax train: ended at once by a second {name}.\n"
                os.write(2, line.encode())  # print may be what was interrupted
                os._exit(128 + number)
            self.signal = name

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
        return self

    def __call__(self, done: int, pending: Any = None) -> str:
        """Why to end after `done` steps; "" to go on.

        Several processes wait for what is `pending` before they ask each other: two
        programs that exchange data must not run side by side, in two orders.
        """
        if self.at and done >= self.at:
            return f"train.stop_at={self.at}"
        late = self.minutes and time.monotonic() - self.began > 60 * self.minutes
        reason = self.signal or (f"train.minutes={self.minutes}" if late else "")
        if self.agree is None:
            return reason
        if done % self.every:
            return ""
        jax.block_until_ready(pending)
        some = self.agree(bool(reason))
        return (reason or "another process ended") if some else ""


@dataclasses.dataclass
class Tally:
    """What happened since the last line of the history; checkpoints keep it."""

    skipped: int = 0  # records that were replaced, by all processes
    retries: int = 0  # reads that were tried again, by all processes
    rejected: int = 0  # steps that were not applied

    def add(self, skipped: int, retries: int) -> None:
        """Count what happened in some steps."""
        self.skipped += skipped
        self.retries += retries

    def read(self) -> Metrics:
        """The counts as metrics, and a new start."""
        found = {
            "data/skipped": self.skipped,
            "data/retries": self.retries,
            "health/rejected": self.rejected,
        }
        self.skipped = self.retries = self.rejected = 0
        return found


@dataclasses.dataclass
class Guard:
    """Counts rejected steps and ends the run when too many come in a row.

    A step is looked at when the next one is under way, so that the device need not
    wait; `finish` looks at the last one. Fields: `most` in a row that are too many;
    `keep(step, state, batch)` saves what reproduces such a step and says where;
    `tally` takes the count.
    """

    most: int
    keep: Callable[[int, Any, Any], str]
    tally: Tally
    pending: tuple | None = None

    def add(self, state: Any, done: int, terms: dict[str, jax.Array], batch: Any):
        """Look at the step before this one. Raises: NotFinite."""
        self.finish(state)
        self.pending = (done, terms, batch)

    def finish(self, state: Any) -> None:
        """Look at the step that is still pending. Raises: NotFinite."""
        if self.pending is None:
            return
        (done, terms, batch), self.pending = self.pending, None
        in_a_row = int(terms["health/rejected"])
        self.tally.rejected += in_a_row > 0
        if in_a_row < self.most:
            return
        values = {name: float(x) for name, x in jax.device_get(terms).items()}
        bad = [f"{name}={x}" for name, x in values.items() if not math.isfinite(x)]
        raise NotFinite(
            f"Step {done}: {self.most} steps in a row were not finite and were not "
            f"applied ({', '.join(bad)}). Lower optim.base_lr, check the data, or "
            f"compute in train.dtype=float32. {self.keep(done, state, batch)}"
        )


@dataclasses.dataclass(frozen=True)
class Probe:
    """Something to measure now and then: `measure(state)` every so many steps."""

    every: int
    measure: Callable[[Any], Metrics]

    def due(self, done: int, stop: int) -> bool:
        """Whether it measures after `done` steps: every so many, first and last."""
        return bool(self.every) and (done % self.every == 0 or done == stop)


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
    batches: Iterator[tuple[Any, int, int]],
    start: int,
    stop: int,
    images: int,
    history: History,
    progress: Progress,
    save: Callable[[int, Any, float | None], None],
    ended: Callable[..., str],
    guard: Guard,
    total: Callable[[Sequence[int]], Sequence[int]] = tuple,
    log_every: int = 10,
    save_every: int = 0,
    probes: Sequence[Probe] = (),
    best: Callable[[Metrics], bool] = lambda metrics: False,
) -> tuple[Any, int, str]:
    """Train from step `start` to `stop` or until `ended` gives a reason.

    The next batch is fetched while the device works; its wait is measured. The
    device is at most one step behind, so that a non-finite step is seen at once.

    Args:
        state: before step `start`.
        step: jitted; (state, batch) -> (state, scalars). The old state is given up.
        batches: (batch on the devices, records that this process skipped in it, reads
            that it tried again), from step `start`.
        start, stop: updates done, and to be done in all.
        images: a step over all devices, for images/s.
        history: where metrics go.
        progress: where the user looks.
        save: (step, state, k-NN or None) writes a checkpoint.
        ended: (step, scalars under way) -> why the run should end now, "" to go on.
        guard: looks at every step.
        total: counts of this process -> their sums over all processes, which all ask
            when a line is written or a checkpoint saved; no step waits for it.
        log_every, save_every: steps between; 0 only at the end.
        probes: measured at the start of a new run, every so many steps, at the end.
        best: whether what the probes measured is the best so far, and to be saved.
    Returns: (state, steps done, reason or "" when it came to its end).
    Raises: NotFinite naming step and terms; the caller's checkpoints stay.
    """
    reason, tally = ended(start), guard.tally
    if start == 0 and not history.lines:
        found = measured(probes, state, 0, stop)
        if found:
            history.write(0, found)
            progress.show(0, summary(found))
        if best(found):
            save(0, state, found.get("knn/top1"))
    elif reason:
        return state, start, reason
    meter, counts = Meter(), [0, 0]
    for done in range(start + 1, stop + 1):
        before = time.monotonic()
        batch, skipped, retries = next(batches)
        meter.waited += time.monotonic() - before
        counts = [counts[0] + skipped, counts[1] + retries]
        state, terms = step(state, batch)
        meter.steps += 1
        guard.add(state, done, terms, batch)
        reason, found = ended(done, terms), {}
        logging = done == stop or done % log_every == 0
        saving = done == stop or reason or (save_every and done % save_every == 0)
        if logging or saving or any(probe.due(done, stop) for probe in probes):
            guard.finish(state)
            tally.add(*total(counts))
            counts = [0, 0]
        if logging:
            found = {name: float(x) for name, x in jax.device_get(terms).items()}
            found |= tally.read() | meter.read(images)
        pause = time.monotonic()
        measurements = measured(probes, state, done, stop)
        found |= measurements
        if found:
            history.write(done, found)
            progress.show(done, summary(found))
        if best(measurements) or saving:
            save(done, state, found.get("knn/top1"))
        meter.began += time.monotonic() - pause
        progress.update(done)
        if reason:
            return state, done, reason
    return state, stop, ""


def measured(probes: Sequence[Probe], state: Any, done: int, stop: int) -> Metrics:
    """What the probes that are due say."""
    found: Metrics = {}
    for probe in probes:
        if probe.due(done, stop):
            found |= probe.measure(jax.block_until_ready(state))
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
