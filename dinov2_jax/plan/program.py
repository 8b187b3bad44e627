"""The text of a compiled program: its computations, their operations, and groups.

One reader for what the compilers of TPUs, GPUs and CPUs print.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from dinov2_jax import errors

Shape = tuple[str, tuple[int, ...]]
"""(dtype, sizes) of an array."""


def shapes(text: str) -> tuple[Shape, ...]:
    """All arrays of a type, e.g. of `(bf16[2,3]{1,0:T(8,128)}, u32[])`."""
    return tuple(
        (dtype, tuple(int(n) for n in sizes.split(",") if n))
        for dtype, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text)
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of the text; `rest` are its attributes."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that run as a part of this one, loops apart."""
        found = re.findall(
            r"(?:calls|true_computation|false_computation)=%?([\w.\-]+)", self.rest
        )
        if self.op == "call":
            found += re.findall(r"to_apply=%?([\w.\-]+)", self.rest)
        for names in re.findall(
            r"(?:branch_computations|called_computations)=\{(.*?)\}", self.rest
        ):
            found += re.findall(r"%?([\w.\-]+)", names)
        return tuple(found)


class Program:
    """The computations of a text, each a dict from names to unread lines."""

    def __init__(self, text: str):
        """Cut the text into computations."""
        self.computations: dict[str, dict[str, str]] = {}
        self.entry, current = "", None
        head, _, _ = text.partition("\n")
        counts = (
            re.search(rf"{n}=(\d+)", head) for n in ("num_partitions", "replica_count")
        )
        self.devices = math.prod(int(count[1]) for count in counts if count)
        for line in text.splitlines():
            if current is None:
                start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
                if start and not line.startswith((" ", "HloModule")):
                    current = self.computations.setdefault(start[2], {})
                    self.entry = start[2] if start[1] else self.entry
            elif line.rstrip() == "}":  # a kernel's lines may begin with braces
                current = None
            else:
                found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)", line)
                if found:
                    current[found[1]] = found[2]

    def instructions(self, computation: str) -> Iterator[Instruction]:
        """The operations of a computation in order."""
        for name, text in self.computations.get(computation, {}).items():
            yield instruction(name, text)

    def whole(
        self, computation: str, found: Instruction, kind: str
    ) -> tuple[Shape, ...]:
        """Shapes of a collective's arrays where they are whole."""
        lines = self.computations[computation]
        given = [
            shape
            for name in found.operands
            for shape in shapes(instruction(name, lines[name]).type)
        ]
        if kind != "all-gather":
            return tuple(given)
        members = len(self.members(found))
        axis = int(re.search(r"dimensions=\{(\d+)\}", found.rest)[1])
        return tuple(
            (dtype, (*sizes[:axis], sizes[axis] * members, *sizes[axis + 1 :]))
            for dtype, sizes in given
        )

    def members(self, found: Instruction) -> tuple[int, ...]:
        """The devices of a collective's first group."""
        pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", found.rest)
        if pairs:
            return _cycle(re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
        groups = first_group(found.rest)
        return tuple(range(self.devices)) if groups is None else groups

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop's body runs, or None where the text does not tell."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        # Loops of a scan count from 0; their condition holds the number of trips.
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
        limits = list(self._constants(condition))
        return max(limits, default=None)

    def _constants(self, computation: str) -> Iterator[int]:
        """Integers that a computation, or one that it calls, holds."""
        for found in self.instructions(computation):
            text = self.computations[computation][found.name]
            yield from map(int, re.findall(r" constant\((\d+)\)", text))
            for name in found.called:
                yield from self._constants(name)


def instruction(name: str, text: str) -> Instruction:
    """Read `TYPE op(operands), attributes`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    op, _, _ = text.partition("(")
    close = _closing(text, len(op))
    operands = tuple(re.findall(r"%([\w.\-]+)", text[len(op) : close]))
    return Instruction(name, kind, op, operands, text[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise errors.InputError(f"A parenthesis of {text[:80]!r} is not closed.")


def _cycle(pairs: list[tuple[str, str]]) -> tuple[int, ...]:
    """Devices that a permutation's first source reaches."""
    goes = {int(a): int(b) for a, b in pairs}
    found = [next(iter(goes))]
    while (following := goes.get(found[-1])) is not None and following not in found:
        found.append(following)
    return tuple(found)


def first_group(text: str) -> tuple[int, ...] | None:
    """The devices of the first of an operation's groups; None for all devices.

    Args:
        text: with `replica_groups=` in one of its three spellings: lists of numbers;
            `[4,2]<=[2,4]T(1,0)`, reshaped and transposed counting; or axes of a mesh.
    """
    lists = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if lists:
        return tuple(map(int, lists[1].split(",")))
    counted = re.search(r"replica_groups=(\[[\d,]+\])<=(\[[\d,]+\]\S*)", text)
    if counted:
        shape = _numbers(counted[1])
        return tuple(_counting(counted[2]).reshape(shape)[0].tolist())
    mesh = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", text
    )
    if not mesh:
        return None
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    total = math.prod(sizes.values())
    ids = _counting(mesh[2] or f"[{total}]").reshape(tuple(sizes.values()))
    return _along(ids, list(sizes), mesh[3])


def _along(ids: np.ndarray, names: list[str], axes: str) -> tuple[int, ...]:
    """The first devices along some axes of a mesh.

    Args:
        ids: the mesh. names: of its axes.
        axes: `'a','b':(2)4`, a part of an axis being (parts before it)its size.
    """
    where = [slice(0, 1)] * ids.ndim
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes):
        axis = names.index(name)
        step = ids.shape[axis] // (int(before) * int(size)) if size else 1
        count = int(size) if size else ids.shape[axis]
        where[axis] = slice(0, step * count, step)
    return tuple(ids[tuple(where)].ravel().tolist())


def _numbers(text: str) -> list[int]:
    """The integers of a text."""
    return [int(n) for n in re.findall(r"\d+", text)]


def _counting(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: 0, 1, ... in this shape, transposed."""
    shape, _, order = text.partition("T(")
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)) if order else ids
