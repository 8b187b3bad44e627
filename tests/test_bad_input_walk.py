"""Folders that hold nothing to read: one line that says what was left out."""

import os

import pytest
import test_bad_input
import test_walk
from test_walk import put

from dinov2_jax import __main__ as command
from dinov2_jax.cli import data

config = test_bad_input.config
places = test_bad_input.places
refusal = test_bad_input.refusal
unprivileged = test_walk.unprivileged

CASES = {
    "a folder of HEIC alone": (["cat/1.heic", "cat/2.HEIC"], "2 .heic); names must"),
    "hidden and service entries alone": (
        [".git/x.jpg", "__MACOSX/x.jpg", "cat/._x.jpg"],
        "hidden or service entries: 3 (.git, __MACOSX, cat/._x.jpg)",
    ),
    "names that are not UTF-8": ([b"caf\xe9\n.heic"], "ignored: 1 .heic"),
}


@pytest.mark.parametrize("what", CASES)
def test_a_folder_without_an_image_is_refused(what, config, tmp_path, refusal):
    files, words = CASES[what]
    put(tmp_path / "data", *files)
    line = refusal(config(), f"--config.data.train=folder:{tmp_path}/data")
    assert "holds no image" in line and words in line


def test_pipes_and_loops_alone(config, tmp_path, refusal):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data/pipe.jpg")
    os.symlink(".", tmp_path / "data/loop")
    os.symlink("nowhere.jpg", tmp_path / "data/broken.jpg")
    line = refusal(config(), f"--config.data.train=folder:{tmp_path}/data")
    assert "neither file nor folder: 1 (pipe.jpg)" in line
    assert "through links: 1 (loop)" in line and "links: 1 (broken.jpg)" in line


def test_a_folder_that_may_not_be_read(unprivileged, capsys, told):
    root, lowered = unprivileged
    for action in data.ACTIONS:  # with what they import, while all may be read
        data.module(action)
    put(root, "data/x.jpg")
    os.chmod(root / "data", 0)
    with lowered():
        assert command.main(["data", "check", f"folder:{root}/data"]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert f"the folder {root}/data cannot be read (Permission denied)" in line
    told("a folder that may not be read", line)
