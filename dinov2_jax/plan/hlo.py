"""The collectives of a compiled program, read from its text.

Three things are not as the text first looks: a loop's body is printed once but runs
many times; on TPUs a collective that overlaps with computation is a fusion, of which
the computations in between hold copies; and a reduce-scatter may be printed as an
all-reduce inside a fusion whose name tells.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from dinov2_jax import errors
from dinov2_jax.plan.program import Instruction, Program, Shape

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

FREE = (
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "tuple",
)
"""Operations that take no time, so that nothing overlaps with them."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Fields: `kind` one of KINDS; `members` the devices of its first group; `trips`
    times that it runs in a step; `shapes` (dtype, sizes) of its arrays where they are
    whole: gathered, or not yet scattered; `asynchronous` if other work is scheduled
    while it runs; `in_loop` if it lies in a loop; `source` the JAX operation.
    """

    kind: str
    members: tuple[int, ...]
    trips: int
    shapes: tuple[Shape, ...]
    asynchronous: bool
    in_loop: bool
    source: str = ""

    @property
    def group(self) -> int:
        """Devices that take part."""
        return len(self.members)

    @property
    def bytes(self) -> int:
        """Size of its whole arrays, once."""
        return sum(size_of(shape) for shape in self.shapes)

    @property
    def wire(self) -> float:
        """Bytes that each device sends in a step, over a ring and over all trips.

        Source: the bandwidth-optimal ring algorithms; an all-reduce is a
        reduce-scatter and an all-gather.
        """
        share = (self.group - 1) / self.group
        if self.kind == "all-reduce":
            share *= 2
        if self.kind in ("collective-permute", "collective-broadcast"):
            share = 1
        return self.trips * share * self.bytes


def size_of(shape: Shape) -> int:
    """Bytes of an array; types below a byte are counted as packed."""
    dtype, sizes = shape
    bits = re.search(r"\d+", dtype)
    # pred is a byte; tokens and the like have no size.
    width = int(bits[0]) if bits else 8 * (dtype == "pred")
    return (math.prod(sizes) * width + 7) // 8


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled program, each once.

    Args:
        text: `jax.stages.Compiled.as_text()`.
    Raises: ValueError for a collective in a loop whose length the text does not tell.
    """
    found = Program(text)
    return list(_walk(found, found.entry, 1, False, ""))


def _walk(
    program: Program, computation: str, trips: int | None, loop: bool, role: str
) -> Iterator[Collective]:
    """The collectives of a computation and of those that it runs.

    `role`: what a fusion is that calls it: `start` of an asynchronous collective, a
    `scatter`, or `copy` for one that only repeats a collective of its operands.
    """
    found = list(program.instructions(computation))
    for number, one in enumerate(found):
        base = one.op.removesuffix("-start")
        if base in KINDS and role != "copy":
            if trips is None:
                raise errors.InputError(
                    f"{one.name} lies in a loop whose length the program's text does "
                    "not tell."
                )
            kind = "reduce-scatter" if role == "scatter" else base
            yield Collective(
                kind,
                program.members(one),
                trips,
                program.whole(computation, one, kind),
                role == "start" or (one.op != base and _overlaps(found, number)),
                loop,
                (re.search(r'op_name="(.*?)"', one.rest) or ["", ""])[1],
            )
        elif one.op == "while":
            length = program.trips(one)
            inner = None if None in (trips, length) else trips * length
            body = re.search(r"body=%?([\w.\-]+)", one.rest)[1]
            yield from _walk(program, body, inner, True, "")
        else:
            for name in one.called:
                begun = one.op == "async-start" and _overlaps(found, number)
                inner = "start" if begun else _role(one, name) or role
                yield from _walk(program, name, trips, loop, inner)


def _role(fusion: Instruction, called: str) -> str:
    """What a TPU's fusion has to do with the collective inside it."""
    if fusion.op != "fusion":
        return ""
    if fusion.name.startswith("async-collective-start"):
        return "start"
    if "async" in fusion.name + called:
        return "copy"
    return "scatter" if "all-reduce-scatter" in called else ""


def _overlaps(found: list[Instruction], start: int) -> bool:
    """Whether work is scheduled between a collective's start and its end."""
    for one in found[start + 1 :]:
        if found[start].name in one.operands and one.op.endswith("-done"):
            return False
        begins = one.op.endswith(("-start", "-done", "-update"))
        if one.op not in FREE and not begins:
            return True
    return False
