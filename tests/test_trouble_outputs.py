"""Files that cannot be written or read, a full disk, a defect: a line or a traceback."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback

import pytest
import test_embed
import test_run
import test_trouble
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax import checkpoint, errors, lease
from dinov2_jax import config as settings
from dinov2_jax.cli import probes, show
from dinov2_jax.data import sources
from dinov2_jax.plan import topologies
from dinov2_jax.train import history

DEMO = pathlib.Path(__file__).parents[1] / "configs/demo.py"
small_disk = test_trouble.small_disk  # the fixture: a disk of 24 MB
weights = test_embed.weights  # the fixture: a narrow backbone in a file


@pytest.fixture
def images(tmp_path):
    """Eight images in two classes."""
    folder = tmp_path / "images"
    for i in range(8):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 48), 9 * i + 1).convert("RGB").save(path)
    return folder


@pytest.fixture
def run(tmp_path):
    """A workdir with two lines of metrics."""
    log = history.History(tmp_path, 0)
    for step in range(2):
        log.write(step, {"loss/total": 1.0})
    log.close()
    return tmp_path


@pytest.fixture
def results(tmp_path):
    """A folder with results of an evaluation."""
    about = {
        "task": "knn",
        "architecture": "S/14",
        "weights": "w",
        "val": "folder:x",
        "metric": "top1",
        "metrics": {"top1": 0.5},
        "settings": {},
    }
    (tmp_path / "results.json").write_text(json.dumps(about))
    return tmp_path


def options(weights, images, run, results) -> dict[str, list[str]]:
    """What each command is given, {out} being the file or folder that it writes."""
    data = f"folder:{images}"
    sizes = ("--resize=36", "--crop=32", "--batch-size=8", "--shard-size=8")
    return {
        "train": test_run.arguments("{out}"),
        "embed": [
            *("embed", f"--weights={weights}", f"--data={data}", "--out={out}", *sizes)
        ],
        "evaluate": [
            *("evaluate", "knn", f"--weights={weights}", f"--train={data}"),
            *(f"--val={data}", "--out={out}", "--set", "crop=32", "--set", "resize=36"),
        ],
        "evaluate table": ["evaluate", "table", str(results), "--out={out}"],
        "convert": ["convert", f"--from={weights}", "--to=safetensors", "{out}"],
        "show": ["show", "run", str(run), "--out={out}"],
        "data pack": ["data", "pack", data, "{out}", "--workers=1"],
        "data check": ["data", "check", data, "--out={out}", "--workers=1"],
        "data stats": ["data", "stats", data, "--out={out}", "--records=4"],
    }


NAMES = tuple(options("", "", "", ""))


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_cannot_be_written_is_one_line(
    name, weights, images, run, results, tmp_path, capsys, told
):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    given = options(weights, images, run, results)[name]
    assert command.main([text.replace("{out}", str(out)) for text in given]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path}/file" in said and "Not a directory" in said, said
    assert (tmp_path / "file").read_text() == "mine"
    told(f"{name}: a place that cannot be written", said)


@pytest.mark.parametrize("name", ["bench", "plan"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    name, tmp_path, capsys, monkeypatch, told
):
    monkeypatch.setattr(topologies, "require_compiler", lambda topology: None)
    for work in ("in_a_process", "compiled"):
        monkeypatch.delattr(f"dinov2_jax.cli.{name}.{work}", raising=False)
    more = {"bench": ["step", "--batch-per-device=8"], "plan": ["--topology=v5e:2x2"]}
    given = [name, *more[name], f"--config={DEMO}"]
    for path, why in ((tmp_path, "Is a directory"), ("/proc/x", "No such file")):
        assert command.main([*given, f"--json={path}"]) == 1
        said = capsys.readouterr().err
        assert f"--json={path}: {why}" in said and said.count("\n") == 1
        told(f"{name}: a file that cannot be written", said.strip())


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_full_disk_is_one_line(
    name, weights, images, run, results, small_disk, capsys, told
):
    test_trouble.fill(small_disk, 0)
    given = options(weights, images, run, results)[name]
    if name == "data check":  # which has nothing to write where all is good
        (images / "a" / "bad.png").write_bytes(b"no image")
    out = small_disk / "out"
    assert command.main([text.replace("{out}", str(out)) for text in given]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in said and str(small_disk) in said, said
    assert not out.is_file()
    told(f"{name}: a full disk", said)


def test_rows_of_features_that_a_disk_has_no_room_for_are_one_line(
    weights, images, small_disk, capsys
):
    test_trouble.fill(small_disk, 30_000)  # room for the manifest, not for the shard
    given = options(weights, images, "", "")["embed"]
    given = [text.replace("{out}", str(small_disk / "out")) for text in given]
    assert command.main([*given, "--what=patches"]) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]


CHECKPOINTS = """
import logging, pathlib, sys
import jax.numpy as jnp, numpy as np
from dinov2_jax import __main__ as command, checkpoint, errors

def main(given):
    logging.basicConfig(level=logging.WARNING)
    numbers = np.random.default_rng(0).normal(size=800_000).astype(np.float32)
    with errors.at(sys.argv[1], "--workdir"):
        checkpoints = checkpoint.manager(pathlib.Path(sys.argv[1]), keep=9)
        try:
            for step in range(99):
                checkpoint.save(checkpoints, step, {"w": jnp.asarray(numbers)}, {})
        finally:
            checkpoints.wait_until_finished()
            checkpoints.close()

sys.modules["dinov2_jax.cli.train"] = type(sys)("train")
sys.modules["dinov2_jax.cli.train"].main = main
sys.exit(command.main(["train"]))
"""


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_one_line(small_disk):
    done = subprocess.run(
        [sys.executable, "-c", CHECKPOINTS, small_disk / "run"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"--workdir={small_disk}/run: No space left on device" in done.stderr
    assert len(done.stderr) < 500
    assert checkpoint.steps(small_disk / "run")[:2] == [0, 1]


def test_a_source_that_the_system_refuses_is_one_line(
    tmp_path, capsys, monkeypatch, told
):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr(sources.folder.Folder, "__init__", refused)
    assert command.main(["data", "check", f"folder:{tmp_path}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"Permission denied at {tmp_path}/x" in said and f"folder:{tmp_path}" in said
    told("a folder without permission", said)


def test_weights_that_the_system_refuses_are_one_line(
    weights, tmp_path, capsys, monkeypatch
):
    path = type(weights)

    def refused(self, *arguments):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(path, "open", refused)
    given = ["convert", f"--from={weights}", "--to=safetensors", f"{tmp_path}/out"]
    assert command.main(given) == 1
    said = capsys.readouterr().err
    assert f"{weights}: Permission denied" in said and said.count("\n") == 1


CONFIG = """
import sys
sys.path.insert(0, {folder!r})
import mine
from dinov2_jax import config as base

def get_config():
    mine.schedule()
    return base.default()
"""


@pytest.mark.parametrize("kind", ["ValueError", "OSError", "KeyError"])
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_an_exception_of_the_users_own_code_keeps_its_traceback(name, kind, tmp_path):
    (tmp_path / "mine.py").write_text(f"def schedule():\n    raise {kind}('my own')\n")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(folder=str(tmp_path)))
    given = {
        "train": ["train", f"--workdir={tmp_path}/run"],
        "evaluate": [
            "evaluate",
            "knn",
            "--weights=w",
            "--val=v",
            f"--out={tmp_path}/o",
        ],
    }
    done = subprocess.run(
        [sys.executable, "-m", "dinov2_jax", *given[name], f"--config={config}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and 'mine.py", line 2' in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line", ["import none_such", "schedule(", "raise SystemError('my own')"]
)
def test_a_module_of_the_users_own_that_cannot_be_imported_keeps_its_traceback(
    line, tmp_path
):
    (tmp_path / "mine.py").write_text(f"import sys\n{line}\n")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(folder=str(tmp_path)))
    sys.modules.pop("mine", None)
    with pytest.raises((ImportError, SyntaxError, SystemError)) as caught:
        settings.load(str(config))
    assert "mine.py" in "".join(traceback.format_exception(caught.value))


def test_a_setting_that_another_file_misspells_is_told_with_its_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dinov2_jax import config\n\ndef schedule():\n"
        "    config.default().optim.clpi = 1\n"
    )
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(folder=str(tmp_path)))
    sys.modules.pop("mine", None)
    with pytest.raises(settings.ConfigError, match=r"mine.py, line 4: .*clpi"):
        settings.load(str(config))


@pytest.mark.parametrize("error", [ValueError("my own"), OSError(5, "my own", "/x")])
def test_an_exception_of_a_source_is_not_cut(error, tmp_path, monkeypatch):
    def mine(*arguments, **more):
        raise error

    monkeypatch.setattr(probes, "require_labels", mine)
    with pytest.raises(type(error), match="my own"):
        command.main(test_run.arguments(tmp_path / "run"))


def test_debug_shows_the_traceback_of_a_line(tmp_path, capsys, monkeypatch):
    given = ["show", "run", str(tmp_path)]
    assert command.main(given) == 1
    short = capsys.readouterr().err
    assert short.count("\n") == 1
    for more in (["--debug", *given], [*given, "--debug"]):
        assert command.main(more) == 1
        said = capsys.readouterr().err
        assert said.startswith("Traceback") and said.endswith(short)
    monkeypatch.setenv("DINOV2_JAX_DEBUG", "1")
    assert command.main(given) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_one_line(capsys, monkeypatch):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "main", interrupted)
    assert command.main(["show", "run", "x"]) == 130
    assert capsys.readouterr().err == "dinov2-jax show: interrupted.\n"


def test_ctrl_c_ends_a_command_and_its_workers_in_one_line(tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for i in range(300):
        Image.effect_noise((200, 200), i + 1).save(folder / f"{i}.png")
    given = ["data", "pack", f"folder:{folder}", str(out), "--workers=2"]
    run = subprocess.Popen(
        [sys.executable, "-m", "dinov2_jax", *given, "--shard-records=1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(out.glob(".parts/0*.json")):
        assert run.poll() is None
        time.sleep(0.001)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    said = run.communicate()[1].splitlines()
    assert run.returncode == 130, said
    assert said[-1] == "dinov2-jax data: interrupted."
    assert not any("Traceback" in line for line in said), said
    assert not (out / lease.NAME).exists()


def test_an_error_of_other_files_passes(tmp_path):
    with pytest.raises(FileNotFoundError), errors.at(tmp_path / "a", "--out"):
        (tmp_path / "b" / "c").read_text()
    with (
        pytest.raises(errors.FileError, match=r"--out=.*/a: No such file or directory"),
        errors.at(tmp_path / "a", "--out"),
    ):
        (tmp_path / "a").read_text()
