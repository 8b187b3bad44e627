"""Settings of all tests: CPU, eight virtual devices, full float32 products."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flag = "--xla_force_host_platform_device_count=8"
if flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

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
