"""Worker processes in a container with little shared memory, which is mounted here."""

import os
import subprocess
import sys

import pytest
import test_run

from dinov2_jax.data import shared_memory

BATCH = 32 * (64 * 64 * 3 + 12)  # bytes of one of SCRIPT
SCRIPT = """
import sys, time
from dinov2_jax.data import pipeline, shared_memory, sources

def batches():
    source = sources.open_source("demo:train")  # 28 batches
    settings = dict(batch_size=32, resize=64, crop=64, workers=2, prefetch=1, threads=1)
    return pipeline.eval_batches(source, **settings)

if __name__ == "__main__":
    {body}
"""


def with_shared_memory(size: str, *command: str) -> subprocess.CompletedProcess:
    """Runs Python where /dev/shm is a disk of that size, which no one else sees."""
    mount = f'mount -t tmpfs -o {size} tmpfs /dev/shm && exec "$@"'
    line = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, *command]
    try:
        allowed = subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed or not os.path.isdir("/dev/shm"):
        pytest.skip("mounting shared memory needs the rights of root")
    return subprocess.run(line, capture_output=True, text=True, check=False)


def scripted(tmp_path, size: str, body: str) -> subprocess.CompletedProcess:
    """Runs SCRIPT with a body, each of whose lines is a statement."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{body}", body.replace("\n", "\n    ")))
    return with_shared_memory(size, str(script))


def test_batches_that_shared_memory_cannot_take_are_refused(tmp_path, told):
    more = ("data.workers=2", "data.prefetch=2", "crops.global_size=64", "data.val=")
    given = test_run.arguments(tmp_path / "run", *(f"--config.{x}" for x in more))
    ended = with_shared_memory("size=2m", "-m", "dinov2_jax", *given)
    said = ended.stderr.splitlines()[-1]
    assert ended.returncode == 1
    assert "data.workers=2: 8 batches of 0.4 MiB" in said, ended.stderr
    assert (
        "4 MiB in all, but /dev/shm has 2 MiB free" in said and "--shm-size=5m" in said
    )
    assert "emptyDir of medium Memory" in said and "data.workers=0" in said
    assert not (tmp_path / "run").exists()  # refused before any work
    told("shared memory too small for the workers", said)


def test_shared_memory_of_the_size_that_is_asked_for_is_enough(tmp_path):
    body = """
ready = batches()
held = next(ready)
time.sleep(3)  # the workers fill all that they may
for held in ready:
    time.sleep(0.05)
"""
    size = shared_memory.most(2, 1, 28) * (BATCH + shared_memory.SMALL)
    assert shared_memory.most(2, 1, 28) < 28
    ended = scripted(tmp_path, f"size={size}", body)
    assert ended.returncode == 0, ended.stderr
    ended = scripted(tmp_path, f"size={size - 4096}", body)
    assert ended.returncode == 1 and "--shm-size=" in ended.stderr


# Full before a batch is laid out there, and while it is.
@pytest.mark.parametrize("size", ["size=64k,nr_inodes=3", "size=1m"])
def test_shared_memory_that_is_full_is_blamed_and_not_the_disk(size, tmp_path, told):
    body = """
shared_memory.require = lambda *_: None  # as if others filled it afterwards
try:
    held = list(batches())
except OSError as error:
    print(type(error).__name__, error)
else:
    sys.exit("it had room")
"""
    ended = scripted(tmp_path, size, body)
    assert ended.returncode == 0, ended.stderr
    (said,) = ended.stdout.splitlines()
    assert said.startswith("FileError workers=2: /dev/shm, of ") and "is full" in said
    assert "--shm-size=" in said and "workers=0" in said
    told("shared memory that others filled", said.removeprefix("FileError "))
