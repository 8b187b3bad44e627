"""Who imports whom: the rooms of the package, held by reading its source.

Rooms stand in levels: models, data, train, viz know nothing of each other, and the
commands in cli are the one place where they meet. Four links between rooms are meant:
train/step and train/health annotate with the outputs of models/dino and with Batch of
data/batch, the contract between host and device; train/losses normalises as models/heads
does, so that KoLeo and the head share one guard against a zero row; config keeps its
ranges, and how a text becomes a value, in values.
"""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

import dinov2_jax
from dinov2_jax.cli import workdir

ROOT = pathlib.Path(dinov2_jax.__file__).parent
REPOSITORY = ROOT.parent

# A module may import what all may, its own room, which is the other files of its folder,
# and what the longest entry for its name lists: modules, or folders with all in them.
ALL = ("errors", "escaping", "writing")
ROOMS = {
    "__main__": [""],  # the version alone; its commands are found by name
    "errors": [],
    "escaping": [],
    "writing": [],
    "values": [],
    "flags": [],
    "config": ["values"],
    "lease": [],
    "tree": [],
    "neighbors": [],
    "shards": [],
    "watchdog": [],
    "processes": ["watchdog"],
    "meter": [],
    "download": ["meter"],
    "released": ["models", "convert"],
    "runs": ["checkpoint", "resume"],
    "headfile": ["convert", "download", "released"],
    "zoo": ["models", "convert", "download", "headfile", "released", "runs"],
    "models": [],
    "data": [],
    "viz": [],
    "sharding": ["tree"],
    "cropping": ["data.batch", "data.draws"],
    "checkpoint": ["tree"],
    "resume": ["checkpoint", "sharding"],
    "flops": ["models"],
    "plan": [],
    "features": ["sharding"],
    "evals": ["neighbors"],
    "evals.metrics": [],
    "convert": ["tree", "models"],
    "train": [],
    "train.losses": ["models.heads"],
    "train.progress": ["meter"],
    "train.optim": ["tree"],
    "train.health": ["models.dino"],
    "train.step": ["models.dino", "data.batch"],
}

LIGHT = (
    "models",
    "cropping",
    "train.losses",
    "train.step",
    "train.optim",
    "train.schedules",
)
ACCELERATOR = {"jax", "jaxlib", "flax", "optax", "numpy", "dinov2_jax"}
"""What a bare accelerator image has."""


def module_name(path: pathlib.Path) -> str:
    """`train.step` of .../dinov2_jax/train/step.py; a folder's own name for its file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path: pathlib.Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def ours(path: pathlib.Path) -> set[str]:
    """Modules of this package that a file imports, without `dinov2_jax.`."""
    found = set()
    for name in imported(path):
        if name.split(".")[0] == "dinov2_jax":
            rest = name.removeprefix("dinov2_jax").removeprefix(".")
            while rest not in MODULES:  # a name inside a module
                rest = rest.rpartition(".")[0]
            found.add(rest)
    return found


def within(name: str, room: str) -> bool:
    """Whether a module is a room or lies in it."""
    return name == room or name.startswith(room + ".")


def rule(name: str) -> list[str]:
    """What the table lets a module import, by its longest entry."""
    hits = [room for room in ROOMS if within(name, room)]
    assert hits, f"{name} stands in no room; add it to the table with its reason."
    return ROOMS[max(hits, key=len)]


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name and not within(name, "cli")]
)
def test_a_module_imports_only_what_its_room_may(name):
    own = name.split(".")[0]
    allowed = rule(name)
    for other in ours(MODULES[name]):
        mine = other in ALL or "." in name and within(other, own)
        assert mine or any(other == a or (a and within(other, a)) for a in allowed), (
            f"{name} imports {other}; its room may import {allowed} and {own}."
        )


@pytest.mark.parametrize("name", [name for name in MODULES if not within(name, "cli")])
def test_nothing_imports_the_commands(name):
    assert not any(within(other, "cli") for other in ours(MODULES[name]))


@pytest.mark.parametrize("name", [name for name in MODULES if not within(name, "cli")])
def test_only_the_commands_and_the_config_itself_know_a_configdict(name):
    uses = {other.split(".")[0] for other in imported(MODULES[name])}
    assert ("ml_collections" in uses) == (name == "config")


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_configs_import_only_the_config(path):
    assert imported(path) <= {"dinov2_jax.config"}


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, "data")])
def test_the_data_room_computes_with_numpy(name):
    uses = imported(MODULES[name])
    # The Batch is a pytree, so that jit takes it: a type, no computation.
    allowed = {"jax"} if name == "data.batch" else set()
    assert {u for u in uses if u.split(".")[0] in ("jax", "jaxlib")} <= allowed


def reached(name: str) -> set[str]:
    """All modules that importing one imports, of ours."""
    found, new = set(), {name}
    while new:
        found |= new
        parents = {
            ".".join(n.split(".")[:i]) for n in new for i in range(n.count(".") + 1)
        }
        new = set().union(*(ours(MODULES[n]) for n in new), parents & set(MODULES))
        new -= found
    return found


@pytest.mark.parametrize(
    "name", [n for n in MODULES if any(within(n, x) for x in LIGHT)]
)
def test_step_models_and_losses_need_what_an_accelerator_image_has(name):
    for module in reached(name):
        for other in imported(MODULES[module]):
            top = other.split(".")[0]
            assert top in ACCELERATOR or top in sys.stdlib_module_names, (
                f"{name} needs {other} through {module}."
            )


SILENT = {
    *("backbone_options", "decoding", "embed_checks", "identity", "setting"),
    *("dense_checks", "depths", "doubts", "predictions", "results"),
    *("training", "workdir"),
}
"""Modules of cli that evaluations import and that change none of their numbers: options,
which are compared themselves, checks, warnings and files."""


def test_the_version_of_the_code_covers_every_module_that_makes_a_number():
    tasks = [name for name in MODULES if name.startswith("cli.evaluate_")]
    used = {name for task in tasks for name in reached(task) if within(name, "cli")}
    numeric = {path for part in workdir.NUMERIC for path in ROOT.glob(part)}
    numeric |= {MODULES[f"cli.{name}"] for name in SILENT} | {MODULES["cli"]}
    assert {name for name in used if MODULES[name] not in numeric} == set()
    rooms = [n for n in MODULES if n.partition(".")[0] in ("models", "data", "evals")]
    packages = {path for path in MODULES.values() if path.name == "__init__.py"}
    assert {MODULES[name] for name in rooms} - packages <= numeric


def loaded_by(code: str, **environment: str) -> set[str]:
    """Modules that a fresh Python holds after some code."""
    code += "\nimport sys; print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines())


@pytest.mark.parametrize(
    "code",
    [
        "import dinov2_jax",
        "from dinov2_jax.__main__ import main; main(['--help'])",
        "from dinov2_jax.__main__ import main; main(['--version'])",
        "from dinov2_jax.__main__ import main; main(['trian'])",
    ],
)
def test_what_needs_no_jax_waits_for_none(code):
    found = loaded_by(code)
    assert "dinov2_jax" in found
    heavy = {"jax", "numpy", "flax", "grain", "orbax", "PIL", "ml_collections"}
    assert not found & heavy


def test_the_data_room_starts_no_backend():
    code = """
from dinov2_jax.data import draws, pipeline, sources
batches = pipeline.train_batches(
    sources.open_source("demo:val"),
    multicrop=draws.MultiCrop(global_size=16, local_size=8),
    patch_size=4, mask_probability=0.5, mask_ratio=(0.1, 0.5), seed=0,
    batch_size=2, group_size=2, start=0, stop=1,
)
batch = next(batches).batch
assert batch.global_crops.shape == (2, 2, 16, 16, 3)
batches.close()
"""
    # With a platform that does not exist, whatever asks for a device fails.
    found = loaded_by(code, JAX_PLATFORMS="none_such")
    assert "dinov2_jax.data.pipeline" in found
    with pytest.raises(AssertionError, match="none_such"):
        loaded_by("import jax; jax.devices()", JAX_PLATFORMS="none_such")


def test_every_entry_of_the_table_is_a_module():
    assert set(ROOMS) <= set(MODULES)
    assert {other for allowed in ROOMS.values() for other in allowed} <= set(MODULES)
