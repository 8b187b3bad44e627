"""The command line around the work: commands, help, and what a run writes of itself."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dinov2_jax
from dinov2_jax import __main__ as command
from dinov2_jax import config as settings
from dinov2_jax.cli import workdir
from dinov2_jax.data import sources
from dinov2_jax.train import history

COMMANDS = pathlib.Path(command.__file__).parent / "cli"


def shell(*arguments: str) -> subprocess.CompletedProcess:
    """`python -m dinov2_jax` with arguments."""
    return subprocess.run(
        [sys.executable, "-m", "dinov2_jax", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_command(flag, capsys):
    assert command.main([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, text in command.COMMANDS.items():
        assert f"  {name}" in out and text in out


def test_the_version_is_that_of_the_package(capsys):
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == dinov2_jax.__version__ + "\n"


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_its_file_and_its_own_help(name, capsys):
    assert (COMMANDS / f"{name}.py").is_file()
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: dinov2-jax {name}")


def test_the_module_runs_as_a_program():
    done = shell("--version")
    assert (done.returncode, done.stdout) == (0, dinov2_jax.__version__ + "\n")
    done = shell("trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dinov2-jax: no command 'trian'; did you mean train?\n"


def test_no_command_is_an_error_that_shows_the_usage(capsys):
    assert command.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == command.usage() + "\n"


def test_an_unknown_command_is_met_with_the_known_ones(capsys):
    assert command.main(["zzz"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert all(name in err for name in ("'zzz'", *command.COMMANDS))


@pytest.mark.parametrize(
    ("option", "word"), [("--fast", "'--fast'"), ("fast", "'fast'"), ("-x", "'-x'")]
)
def test_an_unknown_option_of_train_is_one_line(option, word, capsys, tmp_path):
    given = ["train", "--config=c.py", f"--workdir={tmp_path}/run", option]
    assert command.main(given) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert word in err and "--config.SECTION.KEY=VALUE" in err


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["train"], "--config, --workdir"),
        (["train", "--config=c.py"], "--workdir"),
        (["show", "run"], "workdirs"),
        (["show", "runs", "x"], "'runs' (choose from"),
    ],
)
def test_what_is_missing_is_named_in_the_last_line(given, missing, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(given)
    assert end.value.code == 2
    assert missing in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def finished(tmp_path):
    """Makes a workdir by the functions that a run makes it with."""

    def make(name: str, seed: int) -> pathlib.Path:
        folder, config = tmp_path / name, settings.default()
        config.seed = seed
        workdir.claim(folder, config, False)
        workdir.describe(folder, ["--config=c.py"], parameters={"backbone": 5})
        workdir.save_picture(folder, "crops", np.zeros((8, 12, 3), np.uint8))
        log = history.History(folder, 0)
        for step in range(3):
            log.write(step, {"loss/total": 2.0 - step, "knn/top1": 0.1 * step})
        log.close()
        return folder

    return make


def test_show_run_makes_the_report_of_a_workdir(finished, capsys):
    folder = finished("run", 0)
    assert command.main(["show", "run", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{folder / 'report.html'}\n", "")
    page = (folder / "report.html").read_text()
    assert "--config=c.py" in page and "20.0" in page


def test_show_run_compares_workdirs_in_a_page_of_choice(finished, capsys, tmp_path):
    runs = [str(finished(name, seed)) for seed, name in enumerate(("one", "two"))]
    out = tmp_path / "page.html"
    assert command.main(["show", "run", *runs, f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = out.read_text()
    assert "one" in page and "two" in page and "seed" in page


@pytest.mark.parametrize("name", ["", "none"])
def test_show_run_of_no_run_is_one_line(name, capsys, tmp_path):
    assert command.main(["show", "run", str(tmp_path / name)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"dinov2-jax show: {tmp_path}") and "--workdir" in err
    assert not list(tmp_path.iterdir())


def test_a_run_says_how_it_was_made_and_how_to_go_on(tmp_path):
    workdir.describe(
        tmp_path, ["--config=a b.py", "--config.seed=1"], devices="cpu x 8"
    )
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["command"] == "dinov2-jax train '--config=a b.py' --config.seed=1"
    assert about["continue"] == about["command"]
    assert about["devices"] == "cpu x 8"
    for name in ("python", "jax", "flax", "optax", "grain", "numpy"):
        assert about["versions"][name][0].isdigit()
    assert set(about["git"]) in (set(), {"commit", "changed"})
    assert about["started"].endswith("+00:00")


def test_a_picture_is_replaced_whole(tmp_path):
    (tmp_path / "pictures").mkdir()
    for level in (10, 200):
        workdir.save_picture(tmp_path, "crops", np.full((4, 5, 3), level, np.uint8))
    files = list((tmp_path / "pictures").iterdir())
    assert [path.name for path in files] == ["crops.png"]
    assert (np.asarray(Image.open(files[0])) == 200).all()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    workdir.write_text(path, "old")

    def full(source, target):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="disk full"):
            workdir.write_text(path, "new")
    assert path.read_text() == "old"
    workdir.write_text(path, "new")
    assert path.read_text() == "new"


def test_skipped_records_are_named_once_over_all_starts(tmp_path):
    source = sources.open_source("demo:val")
    skipped = workdir.SkippedRecords(tmp_path, source)
    assert skipped.add(np.array([], np.int64)) == 0
    assert not (tmp_path / "skipped.txt").exists()
    assert skipped.add(np.array([7, 3, 7])) == 3
    again = workdir.SkippedRecords(tmp_path, source)
    assert again.add(np.array([3, 5])) == 2
    lines = (tmp_path / "skipped.txt").read_text().splitlines()
    assert sorted(lines) == sorted(source.name(i) for i in (3, 5, 7))
