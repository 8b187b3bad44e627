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


STEP = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "node7",
    "SLURM_PROCID": "2",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("node[07-12,15],gpu1", "node07"),
        ("rack[2-3]node[04,6]", "rack2node04"),
    ],
)
def test_tasks_of_an_srun_find_the_first_of_their_nodes(nodes, first, monkeypatch):
    for key, value in (STEP | {"SLURM_STEP_NODELIST": nodes}).items():
        monkeypatch.setenv(key, value)
    assert processes._srun() == [f"{first}:61586", "3", "2"]


@pytest.mark.parametrize("missing", sorted(STEP.keys() - {"SLURM_JOB_ID"}))
def test_a_batch_script_without_srun_is_one_process(missing, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "3")
    for key, value in STEP.items():
        if key != missing:
            monkeypatch.setenv(key, value)
    assert processes._srun() is None


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),  # a laptop
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0.svc,t1.svc"}, True),
        ({"TPU_PROCESS_ADDRESSES": "t0:8476,t1:8476"}, True),
        (
            {"TPU_WORKER_HOSTNAMES": "t0", "MEGASCALE_COORDINATOR_ADDRESS": "j0:8080"},
            True,
        ),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", "JAX_PLATFORMS": "cpu"}, False),
    ],
)
def test_hosts_of_a_slice_are_recognised_without_asking(
    variables, several, monkeypatch
):
    for key in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(key, raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert processes._on_tpus() is several


@pytest.mark.parametrize(
    ("tasks", "gpus", "want"),
    [("2", "4", [0, 1, 2, 3]), ("8", "4", None), ("2", None, None)],
)
def test_the_one_task_of_a_node_drives_all_of_its_gpus(tasks, gpus, want, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    if gpus:
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", gpus)
    assert processes._gpus() == want
