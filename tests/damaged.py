"""PyTorch files with broken containers, storages and tensors; see `hostile`."""

import io
import pathlib
import struct
import tarfile
import zipfile
from collections.abc import Callable

import torchfiles as tf


def tar(path: pathlib.Path) -> None:
    """PyTorch's first format."""
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def wide(path: pathlib.Path) -> None:
    """A zip whose directory claims 2^62 bytes for a member."""
    tf.write_zip(path, tf.tensor(), tf.STORAGES)
    data = path.read_bytes()
    wide = struct.pack("<2H2Q", 1, 16, 2**62, 2**62)
    at, end = data.rindex(b"PK\1\2"), bytearray(data[data.rindex(b"PK\5\6") :])
    entry = bytearray(data[at : -len(end)])
    entry[20:28] = b"\xff" * 8
    entry[30:32] = struct.pack("<H", struct.unpack_from("<H", entry, 30)[0] + len(wide))
    end[12:16] = struct.pack("<L", struct.unpack_from("<L", end, 12)[0] + len(wide))
    path.write_bytes(data[:at] + entry + wide + end)


def crowded(path: pathlib.Path) -> None:
    """A zip of end records alone, which claim four thousand million members."""
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2**32, 2**32, 0, 4)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 4, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 0, 4, 0)
    path.write_bytes(b"PK\3\4" + end64 + locator + end)


def overlapping(path: pathlib.Path) -> None:
    """A zip with a member inside another, by which few bytes could give many."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data/1", bytes(24))
    tf.write_zip(path, tf.tensor(), {"0": inner.getvalue(), "1": bytes(24)})
    data = bytearray(path.read_bytes())
    inside = data.index(b"PK\3\4", data.index(b"archive/data/0"))
    entry = data.rindex(b"PK\1\2")
    data[entry + 42 : entry + 46] = struct.pack("<L", inside)
    path.write_bytes(data)


def bomb(path: pathlib.Path) -> None:
    """A zip of 33 kB with a storage of 32 MB."""
    tf.zipped(tf.tensor(), {"0": bytes(2**25)}, packed=True)(path)


def identified(*pid: object) -> Callable:
    """Maker of a zip with a tensor whose storage has this persistent id."""
    made = tf.tensor()
    made.args = (tf.Ask(*pid), *made.args[1:])
    return tf.zipped(made)


def rebuilt(*args: object) -> Callable:
    """Maker of a zip with a tensor made of these arguments."""
    return tf.zipped(tf.call(tf.REBUILD, *args))


def of_tensor(*args: object, storages: dict = tf.STORAGES, **options) -> Callable:
    """Maker of a zip with a tensor that is declared otherwise."""
    return tf.zipped(tf.tensor(*args, **options), storages)


def in_stream(storages: dict = tf.STREAMED, **options: object) -> Callable:
    """Maker of a stream with a tensor, but other storages or keys."""
    return tf.streamed(tf.tensor(view=(None,)), storages, **options)


SOUND = tf.zipped({"weight": tf.tensor()})
TWO = of_tensor(storages=tf.STORAGES | {"1": b""})
STREAM = tf.streamed({"weight": tf.tensor(view=(None,))})
STORAGE = tf.Ask("storage", tf.FLOAT, "0", "cpu", 6)
SCALAR = tf.numpy_array("u1", (), b"1")
HALF = tf.tensor(kind="torch HalfStorage", view=(None,))
BAD_BOOLS = {"0": b"\0\1\2\0\1\0"}
PATHS = (
    *("../data.pkl", "/etc/passwd", "archive/../../x", "archive//x", "archive/./x"),
    *("archive/", "C:/x", "archive\\x"),
)

ZIPS = {
    "cut off": {
        f"a zip cut off at {share:.0%}": tf.cut(SOUND, share)
        for share in (0.02, 0.3, 0.6, 0.9, 0.99)
    },
    "zip is damaged": {
        "a zip behind other bytes": tf.between(b"PK\3\4", SOUND, b""),
        "bytes behind a zip": tf.between(b"", SOUND, b"x"),
        "one part of several": tf.patched(SOUND, b"PK\5\6", 4, b"\1"),
        "more entries than there are": tf.patched(SOUND, b"PK\5\6", 10, b"\7"),
        "fewer entries than there are": tf.patched(SOUND, b"PK\5\6", 10, b"\1"),
        "a wide entry of no size": tf.patched(SOUND, b"PK\1\2", 20, b"\xff" * 8),
        "an entry behind the end": tf.patched(SOUND, b"PK\1\2", 30, b"\xff\xff"),
        "a member elsewhere": tf.patched(SOUND, b"PK\1\2", 42, b"\1"),
        "another name inside": tf.patched(SOUND, b"PK\3\4", 30, b"x"),
        "a member inside another": overlapping,
        "a name that is no UTF-8": tf.patched(SOUND, b"data/0", 0, b"\xff"),
    },
    "4294967296 members": {"2^32 members": crowded},
    "has 4611686018427387904 bytes": {"a member of 2^62 bytes": wide},
    "is compressed": {
        "32 MB of zeros in 33 kB": bomb,
        "a compressed pickle": tf.zipped([0] * 1000, {}, packed=True),
        "other sizes outside and inside": tf.patched(SOUND, b"PK\1\2", 20, b"\1"),
    },
    "is encrypted": {"an encrypted member": tf.patched(SOUND, b"PK\1\2", 8, b"\1")},
    "two members 'archive/data/0'": {
        "two members of one name": tf.replaced(TWO, b"data/1", b"data/0"),
    },
    "plain relative path": {
        f"a member {name}": tf.zipped(0, more={name: b""}) for name in PATHS
    },
    "it needs one folder with data.pkl": {
        "no members": tf.of_bytes(b"PK\3\4PK\5\6" + bytes(12) + b"\4\0\0\0\0\0"),
        "a second data.pkl": tf.zipped(0, more={"other/data.pkl": b"N."}),
        "a member beside the folder": tf.zipped(0, more={"x": b""}),
        "no data.pkl": tf.replaced(SOUND, b"data.pkl", b"data.pkx"),
    },
    "TorchScript": {
        "a TorchScript program": tf.zipped(0, more={"archive/constants.pkl": b""}),
    },
    "byte order": {
        "big-endian": tf.replaced(SOUND, b"little", b"big   "),
        "big-endian in a stream": tf.streamed(0, machine={"little_endian": False}),
    },
}

TENSORS = {
    "its storage '0' has 24 bytes": {
        "a storage of 2^60 values": of_tensor(count=2**60),
        "a storage of -1 values": of_tensor(count=-1),
        "a storage of another type": of_tensor(kind="torch HalfStorage"),
    },
    "it has no storage": {
        "no such storage": of_tensor("1"),
        "a storage named as a path": of_tensor("../../etc/passwd"),
        "no storages in a stream": in_stream({}),
    },
    "torch.QInt8Storage": {"quantised": of_tensor(kind="torch QInt8Storage")},
    "ComplexFloat": {"complex": of_tensor(kind="torch ComplexFloatStorage")},
    "sparse": {"sparse": tf.zipped(tf.call("torch._utils _rebuild_sparse_tensor"))},
    "calls a storage with": {
        "a short id": identified("storage", tf.FLOAT, "0"),
        "an id of a module": identified("module", "Net", "net.py", ""),
        "a key that is a number": identified("storage", tf.FLOAT, 0, "cpu", 6),
        "a type that is a text": identified("storage", "float", "0", "cpu", 6),
        "a part of a storage": of_tensor(view=(("0", 0, 6),)),
    },
    "and its storage has 6": {
        "a shape of 2^40 by stride 0": of_tensor(size=(2**40,), stride=(0,)),
        "a shape of 7 by stride 0": of_tensor(size=(7,), stride=(0,)),
        "a shape of 2^32 by 2^32": of_tensor(size=(2**32, 2**32), stride=(0, 0)),
        "a stride of 2^62": of_tensor(stride=(2**62, 1)),
        "an offset of 1": of_tensor(offset=1),
        "an offset of 2^62": of_tensor(offset=2**62),
    },
    "max_bytes": {"a shape of 0 by 2^62": of_tensor(size=(0, 2**62))},
    "calls a tensor with": {
        "a shape of 10^70": of_tensor(size=(10**70,), stride=(0,)),
        "a shape of -1": of_tensor(size=(-1, 3)),
        "a shape of 0.5": of_tensor(size=(0.5, 3)),
        "a shape of true": of_tensor(size=(True, 3)),
        "a shape in a list": of_tensor(size=[2, 3]),
        "100 dimensions": of_tensor(size=(1,) * 100, stride=(1,) * 100),
        "a stride of -1": of_tensor(stride=(-1, 1)),
        "a stride too many": of_tensor(stride=(3, 1, 1)),
        "an offset of -1": of_tensor(offset=-1),
        "an offset that is a text": of_tensor(offset="0"),
        "a tensor of nothing": rebuilt(),
        "a tensor of a tensor": rebuilt(tf.tensor(), 0, (1,), (1,), False, {}),
        "a tensor of a number": tf.zipped(
            tf.call(tf.RETYPED, SCALAR, 0, (1,), (1,), False, {}, tf.FLOAT)
        ),
        "a tensor with a hook": rebuilt(STORAGE, 0, (6,), (1,), False, {"hook": 1}),
        "a lazily negated tensor": rebuilt(
            STORAGE, 0, (6,), (1,), False, {}, {"neg": 1}
        ),
    },
    "its bools are damaged": {
        "a bool of 2": of_tensor(kind="torch BoolStorage", storages=BAD_BOOLS),
    },
    "calls a parameter with": {
        "a parameter of a text": tf.zipped(
            tf.call("torch._utils _rebuild_parameter", "x", True, {})
        ),
    },
    "calls a NumPy array with": {
        "an array of 2^40": tf.zipped(tf.numpy_array("f4", (2**40,), b"1234")),
        "an array of -1": tf.zipped(tf.numpy_array("f4", (-1,), b"1234")),
        "an array of no state": tf.zipped(
            tf.call("numpy.core.multiarray _reconstruct", "x", (2**40,), b"b")
        ),
    },
    "calls numpy.dtype with": {
        "an array of objects": tf.zipped(tf.numpy_array("O8", (1,), bytes(8))),
        "an array of texts": tf.zipped(tf.numpy_array("U4", (1,), bytes(16))),
    },
    "calls a NumPy scalar with": {
        "a scalar of 3 bytes": tf.zipped(
            tf.call("numpy.core.multiarray scalar", tf.numpy_type("f4"), b"123")
        ),
    },
    "calls torch.Size with": {
        "a size of texts": tf.zipped(tf.call("torch Size", ("x",))),
    },
}

STREAMS = {
    "not a PyTorch file": {"a stream cut off at 2%": tf.cut(STREAM, 0.02)},
    "its protocol is 1002": {
        "another protocol": tf.of_bytes(tf.pickled(tf.MAGIC) + tf.pickled(1002)),
    },
    "its pickle is damaged": {
        "a stream cut off at 20%": tf.cut(STREAM, 0.2),
        "a stream cut off at 60%": tf.cut(STREAM, 0.6),
    },
    "it is cut off or damaged at storage '0'": {
        "a stream cut off at 90%": tf.cut(STREAM, 0.9),
        "a stream cut off at 99%": tf.cut(STREAM, 0.99),
        "a storage of 2^60 in a stream": in_stream({"0": (2**60, b"")}),
        "a storage of -1 in a stream": in_stream({"0": (-1, bytes(24))}),
    },
    "has 20 bytes": {"a storage that is shorter": in_stream({"0": (5, bytes(20))})},
    "of no tensor": {
        "a storage of no tensor": tf.streamed(0),
        "a storage twice": in_stream(keys=["0", "0"]),
    },
    "two types": {
        "a storage of two types": tf.streamed([tf.tensor(view=(None,)), HALF]),
    },
    "1 bytes follow": {"bytes behind a stream": in_stream({"0": (6, bytes(25))})},
    "list of storages": {
        "keys that are numbers": in_stream(keys=[0]),
        "keys that are a text": in_stream(keys="0"),
    },
}

OTHERS = {
    "is empty": {"an empty file": tf.of_bytes(b"")},
    "no such file": {
        "no file": lambda path: None,
        "a folder": lambda path: path.mkdir(),
    },
    "a PyTorch file: it begins with": {
        "a web page": tf.of_bytes(b"<!DOCTYPE html><html>"),
        "a pointer of Git LFS": tf.of_bytes(b"version https://git-lfs.github.com/"),
        "zeros": tf.of_bytes(bytes(1000)),
    },
    "a tar file": {"PyTorch's tar format": tar},
}

ATTACKS = [
    attack for part in (ZIPS, TENSORS, STREAMS, OTHERS) for attack in tf.listed(part)
]
