"""Golden data: `pytest tests/parity --golden DIR` compares with any such folder."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np
import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `<prefix>_file` once for every file of that prefix."""
    folder = golden_folder(metafunc.config)
    for name in metafunc.fixturenames:
        if name in PREFIXES:
            files = sorted(p.stem for p in folder.glob(f"{PREFIXES[name]}*.npz"))
            metafunc.parametrize(name, files)


PREFIXES = {"vit_file": "vit_forward_", "trajectory_file": "train_trajectory_"}


def golden_folder(config: pytest.Config) -> pathlib.Path:
    """The folder given by --golden, else the copy beside the tests."""
    given = config.getoption("--golden")
    folder = pathlib.Path(given or pathlib.Path(__file__).parent / "golden")
    if not (folder / "losses.npz").is_file():
        raise pytest.UsageError(
            f"--golden {folder} holds no losses.npz; give a folder of golden data."
        )
    return folder.resolve()


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> pathlib.Path:
    """Folder of the golden data."""
    return golden_folder(request.config)


class Arrays(Mapping):
    """One golden file: arrays by key, `meta`, and subtrees by prefix."""

    def __init__(self, path: pathlib.Path):
        self._arrays = dict(np.load(path))
        self.meta = json.loads(str(self._arrays.pop("meta")))

    def __getitem__(self, key):
        return self._arrays[key]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self):
        return len(self._arrays)

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose key starts with the prefix, by the rest of the key."""
        start = prefix.rstrip("/") + "/"
        return {
            k.removeprefix(start): v for k, v in self.items() if k.startswith(start)
        }


@pytest.fixture(scope="session")
def arrays(golden):
    """arrays(stem) reads one golden .npz file."""
    return lambda stem: Arrays(golden / f"{stem}.npz")
