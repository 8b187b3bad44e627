"""Trees read from a pickle: plain containers, with records for its names and calls.

A tree is made by `opcodes.parse`, which neither imports nor calls anything. `settle`
turns one of bounded size into values, by tables whose functions check their arguments.
"""

import dataclasses
from collections.abc import Callable, Mapping

from dinov2_jax import errors

MAX_SIZE = 4_000_000  # values in the result, each counted as often as it is met
MAX_DEPTH = 100  # containers in containers; a training checkpoint has about 6


class BadFile(errors.InputError):
    """A file that is damaged, or holds what is not read here."""


class UnsafeFile(BadFile):
    """A file that asks for code: a name outside the tables, or a call of no name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A dotted name of a table; never imported."""

    text: str


@dataclasses.dataclass(slots=True, eq=False)
class Call:
    """A call that the file asks for, and the state it sets afterwards; never made."""

    name: str
    args: tuple
    state: object = None


BRANCHES = (list, tuple, dict, Call)


def short(value: object) -> str:
    """A value of the file for an error message: one printable line, not long."""
    if isinstance(value, (Name, Call)):
        return value.text if isinstance(value, Name) else f"what {value.name} gives"
    if isinstance(value, (str, bytes)):
        return ascii(value[:80]) + "..." * (len(value) > 80)
    if isinstance(value, (int, float, type(None))):
        return ascii(value)
    if type(value) is tuple and all(type(part) is int for part in value[:8]):
        return str(value[:8])[:80] + "..." * (len(value) > 8)
    return f"<{type(value).__name__}>"  # its parts may be many


def settle(
    tree: object,
    values: Mapping[str, object],
    calls: Mapping[str, Callable[[tuple, object], object]],
) -> object:
    """What a tree stands for: its names and calls replaced through two tables.

    Args:
        tree: what `opcodes.parse` gives.
        values: name -> the value it stands for.
        calls: name -> a function of (arguments, state), both settled.
    Raises: UnsafeFile at a name in neither table; BadFile if the result would hold
        itself, nest over MAX_DEPTH containers or have over MAX_SIZE values; what the
        functions of `calls` raise.
    """
    root = [tree]
    done: dict[int, tuple | None] = {}  # None while the parts of a branch are settled
    pending: list = [root]
    spent = 0
    while pending:
        node = pending[-1]
        parts = _parts(node)
        if id(node) not in done:
            done[id(node)] = None
            inner = [part for part in parts if type(part) in BRANCHES]
            if any(done.get(id(part), ()) is None for part in inner):
                raise BadFile("its pickle holds a container that holds itself.")
            pending.extend(part for part in inner if id(part) not in done)
            continue
        pending.pop()
        if done[id(node)] is not None:
            continue
        settled = [done.get(id(part)) or _leaf(part, values) for part in parts]
        size = 1 + sum(part[1] for part in settled)
        depth = 1 + max((part[2] for part in settled), default=0)
        spent += size if type(node) is Call else 0  # a call may copy its arguments
        if max(size, spent) > MAX_SIZE:
            raise BadFile(f"its pickle stands for over {MAX_SIZE} values.")
        if depth > MAX_DEPTH:
            raise BadFile(f"its pickle nests over {MAX_DEPTH} containers.")
        done[id(node)] = _made(node, [part[0] for part in settled], calls), size, depth
    return done[id(root)][0][0]


def _parts(node: list | tuple | dict | Call) -> list | tuple:
    """What a branch holds."""
    if type(node) is Call:
        return node.args, node.state
    return list(node.values()) if type(node) is dict else node


def _leaf(node: object, values: Mapping[str, object]) -> tuple[object, int, int]:
    """Value, size and depth of what is no branch; texts and sets by their length."""
    if type(node) is Name:
        if node.text not in values:
            raise UnsafeFile(f"its pickle has {node.text} in the place of a value.")
        return values[node.text], 1, 0
    if isinstance(node, (str, bytes)):
        return node, 1 + len(node) // 16, 0
    return node, 1 + (len(node) if isinstance(node, (set, frozenset)) else 0), 0


def _made(node: list | tuple | dict | Call, parts: list, calls: Mapping) -> object:
    """The branch made anew of its settled parts."""
    if type(node) is dict:
        return dict(zip(node, parts, strict=True))
    if type(node) is not Call:
        return type(node)(parts)
    if node.name not in calls:
        raise UnsafeFile(f"its pickle calls {node.name}; nothing was run.")
    return calls[node.name](*parts)
