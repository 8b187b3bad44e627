"""Pickles read as inert trees: nothing that a file names is ever imported or called.

`pickle.Unpickler` with a narrow `find_class` would still call what it lets through, keep
a memo as long as the largest index in the file, and build whatever depth and size a few
bytes ask for. Here `pickletools` splits the opcodes and a stack machine makes lists,
dicts, tuples and plain values of them; a name or a call becomes a record of `inert`.
"""

import io
import pickletools
from collections.abc import Container

from dinov2_jax.convert import inert

MAX_BYTES = 32 * 2**20  # of one pickle; that of the largest official model has 0.1 MB
MAX_OPCODES = 1_000_000  # a tensor takes about 30
MAX_BITS = 256  # of an integer; the state of a random generator has 128
PERSISTENT = "persistent_load"  # the name of calls for data outside the pickle

ALIASES = {"__builtin__.": "builtins.", "numpy.core.": "numpy._core."}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
MADE = {
    "TUPLE": tuple,
    "LIST": list,
    "FROZENSET": lambda items: frozenset(map(hashable, items)),
}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MAPPINGS = frozenset({"collections.OrderedDict", "collections.Counter"})
KEYS = (str, int, float, bool, bytes, type(None))


def parse(stream: io.BytesIO, names: Container[str]) -> tuple[object, list[tuple]]:
    """The tree of the pickle that starts where the stream stands, up to its STOP.

    Args:
        stream: bytes in memory, at most MAX_BYTES of them.
        names: every dotted name that may occur.
    Returns: the tree, and the arguments of all persistent calls in it.
    Raises: UnsafeFile at a name outside the table or a call of anything but a name,
        BadFile if the pickle is damaged or beyond a limit.
    """
    machine = _Machine(names)
    return machine.run(stream), machine.asked


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self, names: Container[str]):
        self.names = names
        self.stack: list = []
        self.below: list[list] = []  # the stack under each mark
        self.memo: dict[int, object] = {}
        self.asked: list[tuple] = []  # arguments of all persistent calls

    def run(self, stream: io.BytesIO) -> object:
        """Do all opcodes up to STOP and return the one value left."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count >= MAX_OPCODES:
                    raise inert.BadFile(f"its pickle has over {MAX_OPCODES} opcodes.")
                if not self.push(opcode.name, argument):
                    self.step(opcode.name, argument)
        except inert.BadFile:
            raise
        except ValueError as error:  # from pickletools, at bytes that are no opcodes
            raise inert.BadFile(
                f"its pickle is damaged: {str(error)[:80]!a}."
            ) from None
        if self.below or len(self.stack) != 1:
            raise inert.BadFile("its pickle is damaged: it leaves not just one value.")
        return self.stack[0]

    def push(self, opcode: str, argument: object) -> bool:
        """Push the value that the opcode alone gives; False if it's another opcode."""
        if opcode in LITERALS:
            if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                raise inert.BadFile(
                    f"its pickle has an integer of over {MAX_BITS} bits."
                )
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in EMPTY:
            self.stack.append(EMPTY[opcode]())
        elif opcode == "BYTEARRAY8":
            self.stack.append(bytes(argument))
        else:
            return False
        return True

    def step(self, opcode: str, argument: object) -> None:
        """Do an opcode that works on the stack, its marks or the memo."""
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "POP":
                self.pop()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                self.stack.append(self.top())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise inert.BadFile(f"its pickle is damaged: no memo {argument}.")
                self.stack.append(self.memo[argument])
            case _:
                self.contain(opcode, argument)

    def contain(self, opcode: str, argument: object) -> None:
        """Do an opcode that makes or fills a container."""
        match opcode:
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.popped(SHORT_TUPLES[opcode])))
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT":
                items = self.since_mark()  # which brings back the stack below
                self.stack.append(MADE[opcode](items) if opcode in MADE else {})
                if opcode == "DICT":
                    self.fill("SETITEMS", items)
            case "APPEND":
                self.fill("APPENDS", self.popped(1))
            case "SETITEM":
                self.fill("SETITEMS", self.popped(2))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                self.fill(opcode, self.since_mark())
            case _:
                self.record(opcode, argument)

    def record(self, opcode: str, argument: object) -> None:
        """Write down a name or a call; nothing is looked up and nothing is called."""
        match opcode:
            case "GLOBAL":
                self.stack.append(self.name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(self.name(*self.popped(2)))
            case "REDUCE" | "NEWOBJ":
                self.stack.append(_called(*self.popped(2)))
            case "BUILD":
                state, built = self.pop(), self.top()
                if type(built) is inert.Call and built.state is None:
                    built.state = state
                elif type(built) is not dict or type(state) is not dict:
                    # Attributes of a dict, as a state dict's _metadata, are no weights.
                    what = inert.short(built)
                    raise inert.UnsafeFile(f"its pickle sets the state of {what}.")
            case "BINPERSID":
                asked = self.pop()
                if type(asked) is not tuple:
                    what = inert.short(asked)
                    raise inert.BadFile(f"its pickle asks for data by {what}.")
                self.asked.append(asked)
                self.stack.append(inert.Call(PERSISTENT, asked))
            case "INST":
                self.name(*argument.split(" ", 1))  # to say which, if it's not allowed
                raise inert.UnsafeFile(f"its pickle makes an instance of {argument!a}.")
            case _:
                raise inert.UnsafeFile(f"its pickle uses {opcode}; no weights need it.")

    def pop(self) -> object:
        """The top of the stack, taken off."""
        if not self.stack:
            raise inert.BadFile("its pickle is damaged: it takes from an empty stack.")
        return self.stack.pop()

    def top(self) -> object:
        """The top of the stack, left there."""
        self.stack.append(value := self.pop())
        return value

    def popped(self, count: int) -> list:
        """The `count` top values, the deepest first."""
        return [self.pop() for _ in range(count)][::-1]

    def since_mark(self) -> list:
        """All values above the last mark, taken off with it."""
        if not self.below:
            raise inert.BadFile("its pickle is damaged: a mark is missing.")
        items, self.stack = self.stack, self.below.pop()
        return items

    def fill(self, opcode: str, items: list) -> None:
        """Put items into the list, dict or set on top of the stack."""
        into = self.top()
        if opcode == "APPENDS" and type(into) is list:
            into.extend(items)
        elif opcode == "ADDITEMS" and type(into) is set:
            into.update(map(hashable, items))
        elif opcode == "SETITEMS" and type(into) is dict and len(items) % 2 == 0:
            into.update(zip(map(hashable, items[::2]), items[1::2], strict=True))
        else:
            raise inert.BadFile(f"its pickle fills {inert.short(into)} by {opcode}.")

    def name(self, module: object, name: object) -> inert.Name:
        """A name of the table, under its present spelling."""
        text = f"{inert.short(module)}.{inert.short(name)}"
        if isinstance(module, str) and isinstance(name, str):
            text = f"{module}.{name}"
        for old, new in ALIASES.items():
            text = new + text[len(old) :] if text.startswith(old) else text
        if text not in self.names:
            raise inert.UnsafeFile(
                f"its pickle names {inert.short(text)}, which is not among the names of "
                "tensors and plain values; nothing was run. If you trust the file, "
                "load it in PyTorch and save its state dict alone."
            )
        return inert.Name(text)


def _called(called: object, args: object) -> object:
    """The record of a call; a dict at once, because later opcodes fill it."""
    if type(called) is not inert.Name or type(args) is not tuple:
        what = inert.short(called)
        raise inert.UnsafeFile(f"its pickle calls {what}, not a name with arguments.")
    if called.text in MAPPINGS:
        if not args or type(args[0]) is dict:
            return args[0] if args else {}
        raise inert.BadFile(f"its pickle fills {called.text} by its call.")
    return inert.Call(called.text, args)


def hashable(value: object) -> object:
    """A key of a dict or member of a set whose hash is cheap.

    Tuples of tuples may share parts so that one hash takes exponential time, and large
    integers can be chosen to collide.
    """
    plain = type(value) in KEYS
    if not plain or (type(value) is int and value.bit_length() > 64):
        raise inert.BadFile(f"its pickle has {inert.short(value)} as a key.")
    return value
