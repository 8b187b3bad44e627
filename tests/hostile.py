"""Hostile PyTorch files: how to make each, and what its error must say.

`ATTACKS` has (name, maker, words): the maker writes the file at a path, and the error must
hold the words. One that got through would make the file `torchfiles.canary(path)`.
`CODE` are those that ask for code; broken containers and tensors are in `damaged`.
`benchmarks/hostile_files.py` prints the table of outcomes.
"""

import pathlib
import struct

import damaged
import torchfiles as tf


def pairs(levels: int) -> bytes:
    """Opcodes of (x, x) with x = (y, y) and so on: few values, met 2^levels times."""
    return b")" + b"".join(b"q\0h\0\x86" for _ in range(levels))


def repeated(name: str, argument: bytes, times: int) -> bytes:
    """Opcodes of a list of many results of one call with one shared argument."""
    function = b"c" + name.replace(" ", "\n").encode() + b"\n"
    return function + b"q\0000" + argument + b"q\0010](" + b"h\0h\1R" * times + b"e"


def long_pickle(path: pathlib.Path) -> None:
    """A zip with a pickle of 33 MB."""
    tf.zipped(b"\x80\x02" + b"N0" * 2**24 + b"N.")(path)


RUN = tf.call("posix system", tf.text("touch CANARY"))
OPEN = tf.text('open("CANARY", "w")')
MEGABYTE = b"X" + struct.pack("<L", 2**20) + b"a" * 2**20
LATIN = b"X\6\0\0\0latin1\x86"
MANY = b"](" + b"K\1" * 100_000 + b"e\x85"
CALLED = (
    *("builtins eval", "builtins exec", "builtins getattr", "builtins __import__"),
    *("posix popen", "subprocess run", "importlib import_module", "runpy run_path"),
    *("pickle loads", "marshal loads", "operator methodcaller", "functools partial"),
    *(
        "torch load",
        "torch.hub load",
        "torch.storage _load_from_bytes",
        "torch.jit load",
    ),
    *("torch._dynamo _guards", "torch._utils _import_dotted_name", "numpy load"),
    *("numpy.f2py.crackfortran getlincoef", "omegaconf.dictconfig DictConfig"),
)

CODE = tf.listed(
    {
        "posix.system": {
            "os.system as a weight": tf.zipped({"weight": RUN}),
            "os.system in a plain pickle": tf.of_bytes(tf.pickled(RUN)),
            "os.system in a stream": tf.streamed([RUN]),
            "os.system ahead in a stream": tf.streamed(0, machine=RUN),
            "os.system behind in a stream": tf.streamed(0, keys=RUN),
            "os.system in an allowed call": tf.zipped(tf.call("torch Size", RUN)),
            "os.system in the id of a storage": tf.zipped(tf.Ask("storage", RUN)),
            "os.system as a state": tf.zipped(tf.Reduce(tf.FLOAT, state=RUN)),
            "os.system as a key": tf.raw(b"}", tf.opcodes(RUN), b"Ns"),
            "os.system, result dropped": tf.raw(tf.opcodes(RUN), b"0N"),
            "os.system, STACK_GLOBAL": tf.raw(b"\x8c\5posix\x8c\6system\x93"),
            "os.system, INST": tf.raw(b"(S'touch CANARY'\niposix\nsystem\n"),
            "os.system, OBJ": tf.raw(b"(cposix\nsystem\nS'touch CANARY'\no"),
            "os.system, NEWOBJ": tf.raw(b"cposix\nsystem\nS'touch CANARY'\n\x85\x81"),
        },
        "builtins.eval": {
            "eval under Python 2's name": tf.zipped(tf.call("__builtin__ eval", OPEN)),
        },
        "torch.Size.mro": {
            "a name behind a name": tf.raw(b"\x8c\5torch\x8c\x08Size.mro\x93"),
        },
        "which is not among": {
            "a name of line ends": tf.raw(b"\x8c\2\n\n\x8c\2\r\x1b\x93"),
            "a name of 1 MB": tf.raw(MEGABYTE, MEGABYTE, b"\x93"),
            "a name that is a list": tf.raw(b"]]\x93"),
        },
        "no weights need it": {
            "OBJ of a known name": tf.raw(b"(ctorch\nSize\n)o"),
            "NEWOBJ_EX of a known name": tf.raw(b"ctorch\nSize\n)}\x92"),
            "a code of the extension registry": tf.raw(b"\x82\1"),
            "a buffer from outside": tf.raw(b"\x97"),
            "an id as a line": tf.raw(b"P0\n"),
        },
        "calls": {
            "a call of a result": tf.raw(b"ctorch\nSize\n)\x85R)R"),
            "a call of a text": tf.raw(b"S'posix.system'\n)R"),
            "a call of a type": tf.zipped(tf.Reduce(tf.FLOAT, 6)),
            "a call with a list": tf.raw(b"ctorch\nSize\n]R"),
        },
        "makes an instance of": {
            "INST of a known name": tf.raw(b"(itorch\nSize\n"),
        },
        "in the place of a value": {
            "a function as a value": tf.zipped([tf.Global("torch Size")]),
        },
        "sets the state of": {
            "a state of a list": tf.raw(b"]}b"),
            "a state of a name": tf.raw(b"ctorch\nSize\n}b"),
            "a state of a state dict, no dict": tf.raw(b"}Nb"),
            "two states": tf.raw(tf.opcodes(tf.numpy_type("f4")), b"}b"),
        },
    }
) + [
    (
        f"{name.replace(' ', '.')}",
        tf.zipped(tf.call(name, OPEN)),
        name.replace(" ", "."),
    )
    for name in CALLED
]

PICKLES = tf.listed(
    {
        "integer of over": {
            "an integer of 300 kB": tf.raw(b"\x8b\xe0\x93\4\0", b"\x7f" * 300_000),
        },
        "its pickle is damaged": {
            "an integer of 5,000 digits": tf.raw(b"L", b"9" * 5000, b"L\n"),
            "an integer of a negative length": tf.raw(b"\x8b\xff\xff\xff\xff"),
            "a text of 2^62 bytes": tf.raw(b"\x8d", struct.pack("<Q", 2**62)),
            "bytes of 2^63 bytes": tf.raw(b"\x8e", struct.pack("<Q", 2**63)),
            "a bytearray of 2^62 bytes": tf.raw(b"\x96", struct.pack("<Q", 2**62)),
            "a text that is no UTF-8": tf.raw(b"X\1\0\0\0\xff"),
            "no STOP": tf.zipped(b"\x80\x02N"),
            "an unknown opcode": tf.raw(b"\xff"),
        },
        "bytes, over": {"a pickle of 33 MB": long_pickle},
        "1000000 opcodes": {"1,000,002 opcodes": tf.raw(b"N0" * 500_000)},
        "nests over": {
            "100,000 lists in lists": tf.raw(b"]" * 100_000, b"a" * 99_999),
            "100,000 calls in calls": tf.raw(
                b"ctorch\nSize\nq\0" + b"h\0" * 99_999, b")", b"\x85R" * 100_000
            ),
            "1,000 tuples in tuples": tf.raw(b")", b"\x85" * 1000),
        },
        "holds itself": {
            "a list in itself": tf.raw(b"]q\0h\0a"),
            "a call in its own state": tf.raw(b"cargparse\nNamespace\n)\x81q\0h\0b"),
        },
        "stands for over": {
            "a billion laughs": tf.raw(pairs(60)),
            "1 MB met 1,000 times": tf.raw(MEGABYTE, b"q\0000](", b"h\0" * 1000, b"e"),
            "1 MB encoded 1,000 times": tf.raw(
                repeated("_codecs encode", MEGABYTE + LATIN, 1000)
            ),
            "a set of 100,000 made 1,000 times": tf.raw(
                repeated("builtins set", MANY, 1000)
            ),
        },
        "as a key": {
            "a billion laughs as a key": tf.raw(b"}", pairs(60), b"Ns"),
            "a billion laughs in a set": tf.raw(b"\x8f(", pairs(60), b"\x90"),
            "a billion laughs in a frozen set": tf.raw(b"(", pairs(60), b"\x91"),
            "a billion laughs in a set by a call": tf.raw(
                b"cbuiltins\nset\n](", pairs(10), b"e\x85R"
            ),
            "a tensor as a key": tf.raw(b"}", tf.opcodes(tf.tensor()), b"Ns"),
            "an integer key of 200 bits": tf.zipped({2**200: 1}),
        },
        "ends before or after": {"opcodes behind STOP": tf.raw(b"N.N")},
        "empty stack": {"a value from an empty stack": tf.raw(b"0")},
        "not just one value": {
            "two values": tf.raw(b"NN"),
            "a mark left over": tf.raw(b"N("),
        },
        "a mark is missing": {"a tuple of no mark": tf.raw(b"t")},
        "no memo 7": {"a memo of nothing": tf.raw(b"h\7")},
        "its pickle fills": {
            "a text that is filled": tf.raw(b"S'x'\nNa"),
            "a dict of three values": tf.raw(b"}(NNNu"),
            "a set that is a list": tf.raw(b"](N\x90"),
            "a Counter of nothing": tf.raw(b"ccollections\nCounter\nN\x85R"),
        },
        "asks for data by": {"an id that is a text": tf.raw(b"S'x'\nQ")},
    }
)

ATTACKS = CODE + PICKLES + damaged.ATTACKS
