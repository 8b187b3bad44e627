"""Settings of the tasks of `evaluate`: each has a meaning and a range, checked first."""

import pytest

from dinov2_jax import __main__ as command
from dinov2_jax.cli import evaluate, frozen, setting

OUT_OF_RANGE = {
    "knn": (
        *(
            "temp=0",
            "temp=-1",
            "temp=1e999",
            "temp=1e-45",
            "neighbors=0",
            "neighbors=1,0",
        ),
        *("few=-1", "tries=0", "block=0", "batch_size=0", "limit=-5", "resize=0"),
        *("crop=0", "compute=float16", "workers=-1", "threads=0", "max_pixels=0"),
        *("seed=-1", "batch_size=2147483648"),
    ),
    "linear": (
        *("steps=0", "rates=0", "rates=0.1,-1", "blocks=0", "train_batch=0"),
        *("val_every=0", "save_every=0", "log_every=-3", "seed=-2"),
    ),
    "logreg": (
        *("iterations=-3", "iterations=0", "number=0", "held_out=0", "held_out=1"),
        *("lowest=-31", "highest=1e999", "tolerance=-1", "dtype=float16"),
        *("metric=top5",),
    ),
    "retrieval": ("recall=0", "shown=-1", "shown=0", "pictures=-1", "protocol=mine"),
    "video": ("frames=0", "pool=max", "batch_size=-1"),
}


@pytest.mark.parametrize(
    ("task", "text"), [(task, x) for task, some in OUT_OF_RANGE.items() for x in some]
)
def test_what_is_out_of_range_is_refused_before_anything_is_opened(
    task, text, capsys, tmp_path
):
    given = ["--weights=none", "--train=folder:none", "--val=folder:none"]
    given += [f"--out={tmp_path / 'out'}", f"--set={text}"]
    assert command.main(["evaluate", task, *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    key = text.partition("=")[0]
    assert f"{key}=" in line and "; expected " in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", list(OUT_OF_RANGE))
def test_every_setting_has_a_line_of_meaning_and_range(task, capsys):
    assert command.main(["evaluate", task, "--settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = evaluate.settings(task, {})
    assert [line.partition("=")[0] for line in lines] == list(vars(table))
    for line, (name, value) in zip(lines, vars(table).items()):
        assert line.startswith(f"{name}={value}")
        meaning = line.removeprefix(f"{name}={value}").strip()
        assert len(meaning) > 10 and (meaning.endswith(")") or name == "truth"), line


def test_defaults_lie_in_their_ranges():
    for task in OUT_OF_RANGE:
        table = evaluate._defaults(task)
        assert set(table.about) == set(table)
        for name, one in table.about.items():
            setting.require(name, one.default, one.range)
            assert table[name] == one.default


def test_a_plain_dict_changes_defaults_and_keeps_meanings():
    changed = frozen.IMAGES | {"crop": 98, "other": 1}
    assert changed["crop"] == 98 and frozen.IMAGES["crop"] == 224
    text = setting.listed(changed)
    assert "crop=98" in text and "central crop" in text and "\nother=1" in text
    found = setting.chosen("knn", changed, {"other": "7"})
    assert (found.crop, found.other) == (98, 7)
