"""Hostile, damaged and random files: the one error, in bounded memory; nothing runs."""

import json
import pathlib
import pickle
import pickletools
import subprocess
import sys

import hostile
import pytest
import torchfiles as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2_jax.convert import inert, pth

quick = settings(max_examples=300, deadline=None, database=None, derandomize=True)
CHILD = """
import json, pathlib, resource, sys
from dinov2_jax.convert import pth
assert "torch" not in sys.modules
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
paths = sorted(pathlib.Path(sys.argv[1]).iterdir())
seen, outcomes = set(), {}
sys.addaudithook(lambda event, args: seen.add(event))
for path in paths:
    try:
        pth.read_pth(path)
        outcomes[path.name] = "read"
    except pth.inert.BadFile as error:
        outcomes[path.name] = type(error).__name__
print(json.dumps([outcomes, sorted(seen)]))
"""
PIECES = [
    *(opcode.code.encode("latin-1") for opcode in pickletools.opcodes),
    *(b"ctorch\nSize\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"),
    *(b"c_codecs\nencode\n", b"cbuiltins\nset\n", b"cargparse\nNamespace\n"),
    *(b"cnumpy\ndtype\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\ndevice\n"),
    *(b"K\2", b"X\1\0\0\0a", b"q\0", b"h\0", b"G" + bytes(8), b"C\1a"),
    *map(
        tf.opcodes, (tf.tensor(), tf.numpy_type("f4"), tf.numpy_array("f4", (0,), b""))
    ),
]


@pytest.mark.parametrize(
    "name, make, words", hostile.ATTACKS, ids=[name for name, *_ in hostile.ATTACKS]
)
def test_a_hostile_file_is_one_line_of_error_and_runs_nothing(
    name, make, words, tmp_path
):
    path = tmp_path / "model.pth"
    make(path)
    with pytest.raises(inert.BadFile) as error:
        pth.read_pth(path)
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    line = str(error.value).removeprefix(f"{path}: ")
    assert line.isprintable() and len(line) < 300
    assert not tf.canary(path).exists()


@pytest.mark.parametrize(
    "name, make, words", hostile.CODE, ids=[name for name, *_ in hostile.CODE]
)
def test_a_file_that_asks_for_code_is_told_apart_from_a_damaged_one(
    name, make, words, tmp_path
):
    path = tmp_path / "model.pth"
    make(path)
    with pytest.raises(inert.UnsafeFile):
        pth.read_pth(path)


def test_an_ordinary_unpickler_would_have_run_the_attack(tmp_path):
    path = tmp_path / "model.pth"
    tf.of_bytes(tf.pickled(hostile.RUN))(path)
    pickle.loads(path.read_bytes())
    assert tf.canary(path).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc for its limit")
def test_all_hostile_files_are_read_in_half_a_gibibyte_and_cause_no_audit_event(
    tmp_path,
):
    """Python's audit events tell of every import, process, socket, exec and compile."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number, (_, make, _) in enumerate(hostile.ATTACKS):
        make(folder / f"{number:03}.pth")
    tf.raw(b"(", b"\x8f" * 999_000, b"t")(folder / "sets.pth")  # the worst that is read
    made = {path.name for path in folder.iterdir()}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    outcomes, events = json.loads(child.stdout)
    assert outcomes.pop("sets.pth") == "read"
    assert set(outcomes) | {"sets.pth"} == made
    assert set(outcomes.values()) == {"BadFile", "UnsafeFile"}
    assert set(events) <= {"open", "mmap.__new__", "builtins.id"}


@pytest.mark.parametrize("write", [tf.write_zip, tf.write_stream])
def test_bytes_changed_at_random_give_a_result_or_the_one_error(write, tmp_path):
    path = tmp_path / "model.pth"
    zipped = write is tf.write_zip
    value = {
        "weight": tf.tensor(view=() if zipped else (None,)),
        "array": tf.numpy_array("f4", (1,), bytes(4)),
        "args": [0.1, (1, "a"), tf.call("torch Size", (2,))],
    }
    write(path, value, tf.STORAGES if zipped else tf.STREAMED)
    sound = path.read_bytes()
    change = st.tuples(st.integers(0, len(sound) - 1), st.integers(0, 255))

    @quick
    @given(st.lists(change, min_size=1, max_size=4), st.integers(-200, 20))
    def check(changes: list, end: int) -> None:
        content = bytearray(sound)
        for at, byte in changes:
            content[at] = byte
        path.write_bytes(content[:end] if end < 0 else content)
        result_or_error(path)

    check()


def test_opcodes_at_random_give_a_result_or_the_one_error(tmp_path):
    path = tmp_path / "model.pth"

    @quick
    @given(st.lists(st.sampled_from(PIECES), max_size=30))
    def check(pieces: list) -> None:
        tf.raw(*pieces)(path)
        result_or_error(path)

    check()


def result_or_error(path: pathlib.Path) -> None:
    """Read a file; an error must be the documented one, and of one line."""
    try:
        pth.read_pth(path)
    except inert.BadFile as error:
        assert str(error).isprintable()
