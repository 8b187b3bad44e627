"""Settings of all tests: CPU, eight virtual devices, full float32 products.

Programs are compiled once and shared with the processes that tests start.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flag = "--xla_force_host_platform_device_count=8"
if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

cache = tempfile.mkdtemp(prefix="dinov2-jax-tests-")
atexit.register(shutil.rmtree, cache, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import pytest

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--golden: folder of golden data for tests/parity; --all: slow tests too."""
    parser.addoption("--golden", default=None, help="folder of golden data")
    parser.addoption("--all", action="store_true", help="run every slow test too")


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
