"""Files as `torch.save` writes them, made by hand: no PyTorch, any name, any damage."""

import io
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping

STORAGES = {"0": bytes(24)}  # the six float32 of a tensor by default
STREAMED = {"0": (6, bytes(24))}
HERE = b"CANARY"  # in a pickle: stands for the path of the canary
MAGIC = 0x1950A86A20F9469CFC6C
REBUILD = "torch._utils _rebuild_tensor_v2"
RETYPED = "torch._utils _rebuild_tensor_v3"


class Raw(bytes):
    """Opcodes to put in as they are."""


class Global(str):
    """A name, `module name`."""


class Reduce:
    """A call of `function` with `args`, whose result gets `state` if there is one."""

    def __init__(self, function: object, *args: object, state: object = None):
        self.function, self.args, self.state = function, args, state


class Ask:
    """Something outside the pickle, by its persistent id."""

    def __init__(self, *pid: object):
        self.pid = pid


FLOAT = Global("torch FloatStorage")


def opcodes(value: object) -> bytes:
    """Opcodes of protocol 2 that leave a value on the stack."""
    match value:
        case Raw():
            return bytes(value)
        case Global():
            return b"c" + "\n".join(value.split(" ", 1)).encode() + b"\n"
        case Reduce():
            call = opcodes(value.function) + opcodes(value.args) + b"R"
            return call if value.state is None else call + opcodes(value.state) + b"b"
        case Ask():
            return opcodes(value.pid) + b"Q"
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<L", len(value.encode())) + value.encode()
        case bytes():
            return opcodes(
                Reduce(Global("_codecs encode"), value.decode("latin-1"), "latin1")
            )
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            return (
                b"}("
                + b"".join(opcodes(k) + opcodes(v) for k, v in value.items())
                + b"u"
            )
    raise TypeError(f"no opcodes for a {type(value).__name__}")


def pickled(value: object) -> bytes:
    """A whole pickle of a value; bytes are one already."""
    if type(value) is bytes:
        return value
    return b"\x80\x02" + opcodes(value) + b"."


def tensor(
    key: str = "0",
    size: object = (2, 3),
    stride: object = (3, 1),
    offset: object = 0,
    *,
    kind: str = "torch FloatStorage",
    count: object = 6,
    view: tuple = (),
) -> Reduce:
    """A tensor of a storage, as written for a zip; for a stream `view` is (None,)."""
    storage = Ask("storage", Global(kind), key, "cpu", count, *view)
    hooks = Reduce(Global("collections OrderedDict"))
    return Reduce(Global(REBUILD), storage, offset, size, stride, False, hooks)


def numpy_type(code: str) -> Reduce:
    """A type as NumPy pickles it."""
    state = (3, "<", None, None, None, -1, -1, 0)
    return Reduce(Global("numpy dtype"), code, False, True, state=state)


def numpy_array(code: str, shape: tuple, data: bytes) -> Reduce:
    """An array as NumPy pickles it."""
    made, kind = (
        Global("numpy.core.multiarray _reconstruct"),
        Global("numpy ndarray"),
    )
    state = (1, shape, numpy_type(code), False, data)
    return Reduce(made, kind, (0,), b"b", state=state)


def write_zip(
    path: pathlib.Path,
    value: object,
    storages: Mapping[str, bytes] | None = None,
    *,
    more: Mapping[str, bytes] | None = None,
    packed: bool = False,
) -> None:
    """A file of today's format; members start at multiples of 64 bytes.

    Args:
        value: the object, or the pickle itself as bytes.
        storages: key -> bytes.
        more: further members, by their whole names.
        packed: compress every member.
    """
    members = {"archive/data.pkl": pickled(value), "archive/version": b"3\n"}
    members |= {"archive/byteorder": b"little"}
    members |= {f"archive/data/{key}": raw for key, raw in (storages or {}).items()}
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, raw in (members | dict(more or {})).items():
            info = zipfile.ZipInfo(name)
            start = archive.fp.tell() + 30 + len(name) + 4
            info.extra = struct.pack("<2H", 0x4246, -start % 64) + bytes(-start % 64)
            archive.writestr(info, raw, kind)


def write_stream(
    path: pathlib.Path,
    value: object,
    storages: Mapping[str, tuple[int, bytes]] | None = None,
    *,
    machine: object = None,
    keys: object = None,
) -> None:
    """A file of the format before 1.6.

    Args:
        storages: key -> (number of values, bytes).
        machine, keys: the third and the fifth pickle, if not as they should be.
    """
    storages = storages or {}
    file = io.BytesIO()
    for part in (MAGIC, 1001, machine or {"little_endian": True}, value):
        file.write(pickled(part))
    file.write(pickled(list(storages) if keys is None else keys))
    for count, raw in storages.values():
        file.write(struct.pack("<q", count) + raw)
    path.write_bytes(file.getvalue())


def canary(path: pathlib.Path) -> pathlib.Path:
    """The file that exists once an attack has run."""
    return path.with_name(path.name + ".ran")


def text(words: str) -> Raw:
    """A text whose opcode has no length, so that CANARY in it can be replaced."""
    return Raw(b"S'" + words.encode() + b"'\n")


def call(name: str, *args: object) -> Reduce:
    """A call of a name, `module name`."""
    return Reduce(Global(name), *args)


def zipped(value: object, storages: dict = STORAGES, **options: object) -> Callable:
    """Maker of a zip around a value, or around a pickle of bytes."""
    data = pickled(value)

    def make(path: pathlib.Path) -> None:
        here = str(canary(path)).encode()
        write_zip(path, data.replace(HERE, here), storages, **options)

    return make


def raw(*opcodes: bytes) -> Callable:
    """Maker of a zip whose pickle has these opcodes of any protocol."""
    return zipped(b"\x80\x04" + b"".join(opcodes) + b".")


def streamed(value: object, storages: dict = STREAMED, **options: object) -> Callable:
    """Maker of a stream around a value."""

    def make(path: pathlib.Path) -> None:
        write_stream(path, value, storages, **options)
        here = str(canary(path)).encode()
        path.write_bytes(path.read_bytes().replace(HERE, here))

    return make


def of_bytes(data: bytes) -> Callable:
    """Maker of a file with these bytes."""
    return lambda path: path.write_bytes(data.replace(HERE, str(canary(path)).encode()))


def cut(make: Callable, share: float) -> Callable:
    """Maker of the first part of a file."""

    def make_part(path: pathlib.Path) -> None:
        make(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return make_part


def patched(make: Callable, pattern: bytes, ahead: int, new: bytes) -> Callable:
    """Maker of a file with other bytes some places after the last of a pattern."""

    def make_other(path: pathlib.Path) -> None:
        make(path)
        data = bytearray(path.read_bytes())
        at = data.rindex(pattern) + ahead
        data[at : at + len(new)] = new
        path.write_bytes(data)

    return make_other


def replaced(make: Callable, old: bytes, new: bytes) -> Callable:
    """Maker of a file with other bytes wherever some are."""

    def make_other(path: pathlib.Path) -> None:
        make(path)
        path.write_bytes(path.read_bytes().replace(old, new))

    return make_other


def between(before: bytes, make: Callable, after: bytes) -> Callable:
    """Maker of a file with bytes before and after it."""

    def make_longer(path: pathlib.Path) -> None:
        make(path)
        path.write_bytes(before + path.read_bytes() + after)

    return make_longer


def listed(groups: Mapping[str, Mapping[str, Callable]]) -> list[tuple]:
    """(name, maker, words) of {words: {name: maker}}."""
    return [
        (name, make, words)
        for words, makers in groups.items()
        for name, make in makers.items()
    ]
