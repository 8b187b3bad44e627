"""How fast a step can be at best, from what it computes, moves and sends."""

import collections
import dataclasses
import math
from collections.abc import Sequence

from dinov2_jax.plan import hlo
from dinov2_jax.plan.topologies import Kind


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that a step takes at least, on each part of a device by itself.

    Fields: `compute` products of matrices at the peak; `memory` bytes of the device's
    memory; `wire` all collectives; `exposed` those of them that stand alone in the
    schedule, nothing being computed the while.
    """

    compute: float
    memory: float
    wire: float
    exposed: float

    @property
    def seconds(self) -> float:
        """At least so long: no part is faster, and what stands alone is added."""
        return max(self.compute + self.exposed, self.memory, self.wire)

    @property
    def limit(self) -> str:
        """The part that decides."""
        if self.seconds == self.compute + self.exposed:
            return "compute"
        return "memory" if self.seconds == self.memory else "wire"


def bound(
    kind: Kind,
    node: int | None,
    *,
    peak: float,
    flops: float,
    moved: float,
    sent: Sequence[hlo.Collective],
    scheduled: bool,
) -> Bound:
    """The least time of a step.

    Args:
        kind: of device.
        node: devices that the fast links join; None for all.
        peak: operations a second of a device.
        flops: operations of a device in a step.
        moved: bytes that its memory reads and writes in a step at least.
        sent: the step's collectives.
        scheduled: whether the program's schedule is that of a real run; where it is
            not, any collective may overlap.
    """
    times = [transfer(kind, node, one) for one in sent]
    alone = [t for t, one in zip(times, sent) if not one.asynchronous]
    return Bound(
        compute=flops / peak,
        memory=moved / kind.hbm,
        wire=sum(times),
        exposed=sum(alone) if scheduled else 0.0,
    )


def transfer(kind: Kind, node: int | None, one: hlo.Collective) -> float:
    """Seconds of a collective in a step at least, all its links being used.

    A ring that leaves its node can be run as several at once, so that the adapters of
    all members in a node share what crosses.
    """
    near = one.wire / kind.link
    if node is None:
        return near
    nodes = collections.Counter(member // node for member in one.members)
    if len(nodes) < 2:
        return near
    return max(near, one.wire / (min(nodes.values()) * kind.network))


def moved(arguments: float, outputs: float, peak: float) -> float:
    """Bytes that a step's memory reads and writes at least.

    The state is read and written once, and what besides it lives at the fullest moment
    was written and will be read. What comes and goes in between is not counted.
    """
    return arguments + outputs + 2 * max(peak - arguments, 0)


def run(images: float, batch: int, devices: int, seconds: float) -> dict[str, float]:
    """Rate of a run and what all of it takes.

    Args:
        images: of the whole recipe. batch: of a step on all devices.
        devices: their number. seconds: of a step.
    """
    rate = batch / seconds
    hours = images / rate / 3600
    return {"images_s": rate, "days": hours / 24, "chip_hours": hours * devices}


def overlapped(sent: Sequence[hlo.Collective], kind: str) -> float | None:
    """Share of the bytes of one kind that overlap with computation; None of none."""
    total = math.fsum(one.wire for one in sent if one.kind == kind)
    hidden = math.fsum(
        one.wire for one in sent if one.kind == kind and one.asynchronous
    )
    return hidden / total if total else None
