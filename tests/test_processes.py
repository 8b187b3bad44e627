"""Processes that meet, or say at what address they did not."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from dinov2_jax import processes


@pytest.fixture
def address():
    """localhost with a port that nobody uses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def meet_all(address: str, processes_: int, present: list[int], timeout: float = 20):
    """What each of the present processes met: an error, or None."""
    found = {}

    def one(index):
        try:
            processes.meet(address, processes_, index, timeout)
            found[index] = None
        except OSError as error:
            found[index] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_that_come_meet(address):
    assert meet_all(address, 5, [3, 1, 4, 0, 2]) == dict.fromkeys(range(5))


def test_a_second_run_can_meet_at_the_same_address(address):
    for _ in range(2):
        assert set(meet_all(address, 3, [0, 1, 2]).values()) == {None}


def test_who_is_missing_is_told_to_all_with_the_address(address, told):
    found = meet_all(address, 4, [0, 2], timeout=1)
    for error in found.values():
        assert isinstance(error, TimeoutError)
        assert address in str(error) and "[1, 3]" in str(error) and "1 s" in str(error)
        told("a missing peer", str(error))


def test_without_process_zero_the_others_name_the_address(address):
    (error,) = meet_all(address, 2, [1], timeout=0.5).values()
    assert isinstance(error, TimeoutError)
    assert address in str(error) and "nothing of ours answers" in str(error)


def test_a_port_in_use_is_named(address, told):
    with socket.create_server(("", int(address.partition(":")[2]))):
        (error,) = meet_all(address, 2, [0], timeout=5).values()
    assert address in str(error) and "cannot listen" in str(error)
    told("a port in use", str(error))


def test_what_is_no_process_of_ours_is_not_counted(address):
    host, port = address.split(":")
    found, strangers = {}, [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe", b"dinov2-jax 9\n"]

    def zero():
        try:
            processes.meet(address, 2, 0, 3)
        except TimeoutError as error:
            found["error"] = error

    thread = threading.Thread(target=zero)
    thread.start()
    for greeting in strangers:
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=5) as stranger:
                    stranger.sendall(greeting)
                break
            except ConnectionRefusedError:  # it does not listen yet
                continue
    thread.join()
    assert "[1]" in str(found["error"])


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (("localhost:1", "2", None), "Set all of"),
        (("localhost", "2", "0"), "HOST:PORT"),
        (("localhost:99999", "2", "0"), "HOST:PORT"),
        (("localhost:1", "two", "0"), "HOST:PORT"),
        (("localhost:1", "2", "2"), "0..1"),
        (("localhost:1", "2", "-1"), "0..1"),
    ],
)
def test_variables_that_do_not_fit_together_are_refused(values, word, monkeypatch):
    for key, value in zip(processes.KEYS, values):
        if value is not None:
            monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=word.replace("..", r"\.\.")):
        processes.start()


def test_the_command_ends_with_one_line_where_a_peer_is_missing(address, tmp_path):
    given = [
        "--config=configs/demo.py",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "dinov2_jax", "train", *given],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | dict(zip(processes.KEYS, (address, "2", "0")))
        | {"DINOV2_JAX_TIMEOUT": "0.5"},
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and address in done.stderr
    assert "[1]" in done.stderr and not (tmp_path / "run").exists()
