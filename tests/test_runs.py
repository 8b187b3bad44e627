"""A run's checkpoints as weights: the newest sound one, the best one, one by its step."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest
import tiny

from dinov2_jax import checkpoint, runs, zoo
from dinov2_jax import config as settings
from dinov2_jax.__main__ import main
from dinov2_jax.cli import assemble, starting

STEPS = {3: 0.5, 6: 0.9, 9: 0.4}
"""Step -> its k-NN accuracy."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with three checkpoints, whose cls token is the step."""
    folder, config = tmp_path_factory.mktemp("runs") / "run", tiny.config()
    params = assemble.initial_params(config, assemble.model(config), jax.random.key(0))
    with checkpoint.manager(folder / "checkpoints", keep=3) as checkpoints:
        for step, knn in STEPS.items():
            cls = jnp.full_like(params["backbone"]["cls_token"], step)
            own = params | {"backbone": params["backbone"] | {"cls_token": cls}}
            state = {"params": own, "teacher": own}
            checkpoint.save(checkpoints, step, state, {"next_step": step}, knn)
    (folder / "config.json").write_text(settings.to_json(config))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def files(folder: pathlib.Path) -> dict:
    """What a folder holds, bytes and all."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def damage(run: pathlib.Path, step: int) -> None:
    """Cut off the files of a checkpoint's state."""
    for path in (run / "checkpoints" / str(step) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])


def step_of(source, which="teacher") -> int:
    """The step whose weights a text gives."""
    return int(zoo.load_backbone(None, source, which=which)[1]["cls_token"][0, 0, 0])


@pytest.mark.parametrize(
    "text, step",
    [
        ("", 9),
        ("@best", 6),
        ("@3", 3),
        ("@9", 9),
        ("/checkpoints/6", 6),
        ("/checkpoints", 9),
        ("/checkpoints/3/", 3),
    ],
)
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_run_is_read_at_the_step_that_is_asked_for(trained, text, step, which):
    assert step_of(f"{trained}{text}", which) == step


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "@4",
            r"no checkpoint '4'; choose best or one of the steps \[3, 6, 9\], as in",
        ),
        ("@last", r"no checkpoint 'last'; choose best or .*run@9"),
        ("@", r"no checkpoint ''; .*\[3, 6, 9\]"),
        ("/checkpoints/4", r"no checkpoint '4'; .*\[3, 6, 9\]"),
    ],
)
def test_a_step_that_is_not_there_is_refused_with_those_that_are(trained, text, words):
    with pytest.raises(ValueError, match=words):
        zoo.read_any(f"{trained}{text}")


def test_the_best_needs_accuracies_and_a_checkpoint_a_run(run, tmp_path):
    for score in run.glob("checkpoints/*/score"):
        shutil.rmtree(score)
    with pytest.raises(ValueError, match=r"no checkpoint with a k-NN.*run@STEP.*3, 6"):
        zoo.read_any(f"{run}@best")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no checkpoint, which @best"):
        zoo.read_any(tmp_path / "empty@best")
    assert runs.place(tmp_path / "none@best") is None


def test_a_folder_whose_name_holds_an_at_sign_comes_first(run, tmp_path):
    other = pathlib.Path(shutil.copytree(run, tmp_path / "run@3"))
    assert step_of(other) == 9
    assert step_of(f"{other}@6") == 6


def test_a_damaged_newest_checkpoint_is_passed_over_and_left(run, capsys):
    damage(run, 9)
    before = files(run)
    assert step_of(run) == 6
    told = capsys.readouterr().err
    assert f"{run / 'checkpoints' / '9'} is damaged (" in told
    assert "step 6 is read instead" in told
    shutil.rmtree(run / "checkpoints" / "6" / "state")
    assert step_of(run) == 3
    assert capsys.readouterr().err.count("is damaged (") == 2
    assert {p: v for p, v in before.items() if "/6/state/" not in str(p)} == files(run)


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(run):
    damage(run, 9)
    with pytest.raises(ValueError, match=r"/9 cannot be read .*another step of \[3, 6"):
        zoo.read_any(f"{run}@9")
    for step in (3, 6):
        damage(run, step)
    with pytest.raises(ValueError, match=r"/9 cannot be read .*nor any of the 2 older"):
        zoo.read_any(run)


def test_storage_that_fails_is_no_damage(run, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "load_params", fails)
    with pytest.raises(OSError, match=r"/9 cannot be read .*mend the storage"):
        zoo.read_any(run)


def test_commands_and_new_runs_read_what_is_sound(run, tmp_path, capsys, monkeypatch):
    damage(run, 9)
    out = tmp_path / "out.safetensors"
    assert main(["convert", f"--from={run}", "--to=safetensors", str(out)]) == 0
    shown = capsys.readouterr()
    assert "step 6 is read instead" in shown.err
    assert step_of(out) == 6
    best = tmp_path / "best.safetensors"
    assert main(["convert", f"--from={run}@3", "--to=safetensors", str(best)]) == 0
    assert step_of(best) == 3
    config = tiny.config(init__weights=f"{run}@best")
    starting.check(config, assemble.model(config))
    config = tiny.config(init__weights=str(run))
    starting.check(config, assemble.model(config))
