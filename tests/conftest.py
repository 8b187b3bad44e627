"""Settings of all tests: CPU, eight virtual devices, full float32 products.

Programs are compiled once and shared with the processes that tests start.
"""

import atexit
import os
import pathlib
import re
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Eight devices on two busy cores may wait long for each other.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
for flag in FLAGS:
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share their parent's
    cache = tempfile.mkdtemp(prefix="dinov2-jax-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--golden: data for tests/parity; --all: slow tests too; --lines: a table."""
    parser.addoption("--golden", default=None, help="folder of golden data")
    parser.addoption("--all", action="store_true", help="run every slow test too")
    parser.addoption("--lines", help="file for a table of bad inputs and their lines")


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """Leave slow tests out unless --all is given."""
    if not config.getoption("--all"):
        kept = [item for item in items if "slow" not in item.keywords]
        config.hook.pytest_deselected(items=[i for i in items if i not in kept])
        items[:] = kept


@pytest.fixture(scope="session")
def devices() -> list:
    """The virtual devices."""
    return jax.devices()


LINES = pytest.StashKey[list]()
HEAD = """# Bad input, and the line that it prints

Every row is one line on standard error; the exit code is not 0 and nothing is left
half-written. The tests that hold this printed the table:

    python -m pytest -n 0 -k "bad_input or trouble or processes or lease or resume" --lines=FILE

| bad input | the line |
|---|---|
"""


@pytest.fixture
def told(request):
    """Keeps what the command said of a bad input, for the table of --lines."""
    rows = request.config.stash.setdefault(LINES, [])

    def keep(what: str, line: str) -> None:
        # Folders of this machine mean nothing to a reader.
        line = re.sub(r"/[\w./-]*/(?=[\w.*-]+)", ".../", line).replace("|", "\\|")
        rows.append(f"| {what} | {line.replace('dinov2-jax train: ', '')} |")

    return keep


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table of --lines."""
    path = session.config.getoption("--lines")
    if path:
        rows = session.config.stash.get(LINES, [])
        pathlib.Path(path).write_text(HEAD + "".join(f"{row}\n" for row in rows))
