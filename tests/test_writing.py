"""A file is whole or not there, and nothing is left beside it."""

import os
import subprocess
import sys

import pytest

from dinov2_jax import writing
from dinov2_jax.cli import workdir


@pytest.mark.parametrize("shared", [False, True])
def test_what_fails_leaves_the_file_as_it_was(shared, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), writing.replacing(path, shared) as part:
        part.write_text("half")
        assert path.read_text() == "before"
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["x.txt"] and path.read_text() == "before"
    with writing.replacing(path, shared) as part:
        part.write_text("after")
    assert os.listdir(tmp_path) == ["x.txt"] and path.read_text() == "after"


def test_a_text_is_utf8_and_stray_surrogates_end_nothing(tmp_path):
    workdir.write_text(tmp_path / "x.txt", "été \udce9\n")
    assert (tmp_path / "x.txt").read_bytes() == "été \\udce9\n".encode()


FULL = """
import pathlib, resource, signal, sys
import numpy as np
from dinov2_jax import shards
from dinov2_jax.cli import workdir
out = pathlib.Path(sys.argv[1])
attempts = {
    "text": lambda: workdir.write_text(out / "x.txt", "x" * 100_000),
    "picture": lambda: workdir.save_picture(
        out, "x", np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    ),
    "claim": lambda: shards.claim(out / "claimed", {"x": "x" * 100_000}),
}
(out / "pictures").mkdir()
# No file may grow beyond this: what a full disk does, where it can be had.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for name, attempt in attempts.items():
    try:
        attempt()
    except OSError as error:
        print(name, error.errno)
"""


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.stdout.split("\n") == ["text 27", "picture 27", "claim 27", ""], done
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
