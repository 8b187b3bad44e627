"""PyTorch files (.pth, .pt) read without PyTorch and without running what they hold.

Both formats are known: the zip of PyTorch 1.6 and later, and the stream of pickles before
it. The file is mapped into memory and tensors are read-only views of it.
"""

import io
import mmap
import pathlib
import struct

from dinov2_jax import errors
from dinov2_jax.convert import inert, opcodes, plain, storages, zips

MAX_BYTES = (
    64 * 2**30
)  # of all tensors; a training checkpoint of ViT-g has about 20 GiB
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a stream
NAMES = opcodes.MAPPINGS | {*plain.VALUES, *plain.CALLS, *storages.TENSORS}


def read_pth(path: pathlib.Path, *, max_bytes: int = MAX_BYTES) -> object:
    """What `torch.save` wrote, as plain Python values and NumPy arrays.

    Args:
        path: the file; it must not change while its arrays are in use.
        max_bytes: the most bytes that all its tensors may have together, >= 0.
    Returns: dicts (of an OrderedDict, Counter or Namespace too), lists, tuples, sets,
        texts, numbers, bytes, dtypes as np.dtype, devices as text, and read-only arrays
        for tensors, parameters and storages; bfloat16 is ml_dtypes.bfloat16.
    Raises: UnsafeFile if the file names anything but tensors and plain values; its parent
        BadFile if it is missing, cut off, damaged, not of PyTorch, or describes more than
        it has bytes for or than max_bytes.
    Differs: tensors that repeat elements (`expand`), sparse, quantised or complex ones,
        compressed zips, TorchScript and big-endian files are errors.
    """
    try:
        data = _mapped(path)
        zipped = data[: len(zips.LOCAL)] == zips.LOCAL
        return _read_zip(data, max_bytes) if zipped else _read_stream(data, max_bytes)
    except (ValueError, OSError) as error:
        unsafe = isinstance(error, inert.UnsafeFile)
        kind = inert.UnsafeFile if unsafe else inert.BadFile
        raise kind(f"{path}: {error}") from None


def _mapped(path: pathlib.Path) -> mmap.mmap:
    """The file's bytes, read when looked at; arrays keep the mapping alive."""
    if not path.is_file():
        raise errors.InputError("there is no such file.")
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise errors.InputError("the file is empty.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _pickle_at(
    data: mmap.mmap, at: int, size: int = opcodes.MAX_BYTES
) -> tuple[object, list[tuple], int]:
    """Tree and storages asked for of the pickle that starts at a byte, and its end."""
    stream = io.BytesIO(data[at : at + size])
    tree, asked = opcodes.parse(stream, NAMES)
    return tree, asked, at + stream.tell()


def _read_zip(data: mmap.mmap, max_bytes: int) -> object:
    """The object in a zip: one folder with data.pkl and each storage in data/KEY."""
    members = zips.members(data)
    tops = [name[:-8] for name in members if name.endswith("/data.pkl")]
    if len(tops) != 1 or not all(name.startswith(tops[0]) for name in members):
        raise errors.InputError(
            "a zip, but not of PyTorch: it needs one folder with data.pkl."
        )
    top = tops[0]
    if f"{top}constants.pkl" in members:
        raise errors.InputError(
            "a TorchScript program; save the model's state dict instead."
        )
    if f"{top}byteorder" in members:
        start, size = members[f"{top}byteorder"]
        if size != 6 or data[start : start + 6] != b"little":
            raise errors.InputError(
                "its byte order is not little; save it on another machine."
            )
    start, size = members[f"{top}data.pkl"]
    if size > opcodes.MAX_BYTES:
        raise errors.InputError(
            f"its pickle has {size} bytes, over {opcodes.MAX_BYTES}."
        )
    tree, _, end = _pickle_at(data, start, size)
    if end != start + size:
        raise errors.InputError("its pickle ends before or after data.pkl does.")
    prefix = f"{top}data/"
    places = {
        name.removeprefix(prefix): place
        for name, place in members.items()
        if name.startswith(prefix)
    }
    return _settled(tree, data, places, max_bytes)


def _read_stream(data: mmap.mmap, max_bytes: int) -> object:
    """The object in a stream: magic, protocol, machine, object, keys, storages."""
    if data[257:262] == b"ustar":
        raise errors.InputError(
            "a tar file of PyTorch 0.1; save it anew with a later one."
        )
    try:
        magic, _, at = _pickle_at(data, 0)
    except inert.UnsafeFile:
        raise
    except ValueError:
        magic = None
    if type(magic) is not int or magic != MAGIC:
        raise errors.InputError(f"not a PyTorch file: it begins with {data[:16]!r}.")
    protocol, _, at = _pickle_at(data, at)
    if type(protocol) is not int or protocol != PROTOCOL:
        raise errors.InputError(
            f"its protocol is {inert.short(protocol)}, not {PROTOCOL}."
        )
    machine, _, at = _pickle_at(data, at)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise errors.InputError(
            "its byte order is not little; save it on another machine."
        )
    tree, asked, at = _pickle_at(data, at)
    keys, _, at = _pickle_at(data, at)
    return _settled(tree, data, _stream_places(data, at, asked, keys), max_bytes)


def _stream_places(
    data: mmap.mmap, at: int, asked: list[tuple], keys: object
) -> dict[str, tuple[int, int]]:
    """Start and length in bytes of each storage behind the pickles of a stream."""
    sizes: dict[str, int] = {}
    for pid in inert.settle(asked, plain.VALUES, {}):
        dtype, key, _ = storages.declared(pid)
        if sizes.setdefault(key, dtype.itemsize) != dtype.itemsize:
            raise errors.InputError(f"its storage {inert.short(key)} has two types.")
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise errors.InputError("its list of storages is damaged.")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in sizes or key in places:
            raise errors.InputError(
                f"its storage {inert.short(key)} is of no tensor or double."
            )
        start = at + 8
        count = struct.unpack_from("<q", data, at)[0] if start <= len(data) else -1
        at = start + count * sizes[key]
        if count < 0 or at > len(data):
            raise errors.InputError(
                f"it is cut off or damaged at storage {inert.short(key)}."
            )
        places[key] = start, at - start
    if at != len(data):
        raise errors.InputError(f"{len(data) - at} bytes follow its last storage.")
    return places


def _settled(
    tree: object, data: mmap.mmap, places: dict[str, tuple[int, int]], max_bytes: int
) -> object:
    """The object of a tree, with tensors in storages at known places of the file."""
    calls = plain.CALLS | storages.Storages(data, places, max_bytes).calls()
    return inert.settle(tree, plain.VALUES, calls)
