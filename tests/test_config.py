"""Settings: what the defaults are, and how files and overrides change them."""

import json
import os
import pathlib
import re

import pytest

from dinov2_jax import config as settings
from dinov2_jax import values

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
REFERENCE = {
    "crops.global_scale": (0.32, 1.0),
    "crops.local_number": 8,
    "masks.probability": 0.5,
    "masks.ratio": (0.1, 0.5),
    "head.prototypes": 65_536,
    "head.bottleneck": 256,
    "loss.koleo_weight": 0.1,
    "loss.student_temp": 0.1,
    "optim.base_lr": 4e-3,
    "optim.layer_decay": 0.9,
    "optim.patch_embed_factor": 0.2,
    "optim.weight_decay_end": 0.4,
    "optim.clip": 3.0,
    "teacher.momentum": 0.992,
    "teacher.temp": 0.07,
    "teacher.warmup_temp": 0.04,
    "train.batch_size": 2048,
    "train.group_size": 64,
    "train.steps": 125_000,
}


def written(path: pathlib.Path, *lines: str) -> str:
    """A config file that changes the defaults by some lines."""
    body = "".join(f"    {line}\n" for line in lines)
    path.write_text(
        "from dinov2_jax import config as base\n\n\n"
        f"def get_config(argument=None):\n    c = base.default()\n{body}    return c\n"
    )
    return str(path)


@pytest.mark.parametrize("name", REFERENCE)
def test_defaults_are_those_of_the_reference(name):
    assert dict(settings.fields(settings.default()))[name] == REFERENCE[name]


def test_defaults_are_locked_and_made_anew():
    config = settings.default()
    with pytest.raises(AttributeError, match="base_lr"):
        config.optim.base_lrr = 1.0
    config.seed = 5
    assert settings.default().seed == 0


def test_every_number_has_a_range_that_holds_its_default():
    found = dict(settings.fields(settings.default()))
    numbers = {n for n, x in found.items() if not isinstance(x, (str, bool))}
    assert numbers == set(values.RANGES)
    assert all(values.refusal(name, found[name]) == "" for name in numbers)


@pytest.mark.parametrize("name", values.RANGES)
def test_no_range_holds_less_than_nothing_or_what_is_not_finite(name):
    default = dict(settings.fields(settings.default()))[name]
    wrong = [-1, float("nan"), float("inf")]
    # Integers are counted in 32 bits.
    wrong += [2**31] if isinstance(default, int) else []
    for value in wrong:
        several = isinstance(default, tuple)
        assert values.refusal(name, (value,) * 2 if several else value)


@pytest.mark.parametrize("name", values.RISING)
def test_a_pair_that_falls_is_refused(name):
    assert values.refusal(name, (0.4, 0.4)) == ""
    assert values.refusal(name, (0.5, 0.4)) == "in rising order"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads_and_says_how_to_run_it(path):
    config = settings.load(str(path))
    assert config.is_locked
    text = path.read_text()
    docstring = text.split('"""')[1]
    assert f"dinov2-jax train --config=configs/{path.name} --workdir=" in docstring
    assert re.search(r"\bAim\b", docstring)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", 3),
        ("optim.clip=1", 1.0),
        ("optim.base_lr=1e-3", 1e-3),
        ("model.qkv_bias=false", False),
        ("model.qkv_bias=True", True),
        ("model.variant=S/14", "S/14"),
        ("data.train=folder:/a=b", "folder:/a=b"),
        ("data.val=", ""),
        ("masks.ratio=(0.2, 0.3)", (0.2, 0.3)),
        ("masks.ratio=[0, 1]", (0.0, 1.0)),
        ("eval.neighbors=(5,)", (5,)),
        ("eval.neighbors=1,2,3", (1, 2, 3)),
        ("train.batch_size=4_096", 4096),
    ],
)
def test_an_override_takes_the_type_of_its_field(override, value):
    config = settings.default()
    settings.override(config, override)
    name = override.split("=")[0]
    got = dict(settings.fields(config))[name]
    assert got == value and type(got) is type(value)
    if isinstance(value, tuple):
        assert [type(x) for x in got] == [type(x) for x in value]


@pytest.mark.parametrize(
    "text",
    ["1" + "0" * 400, "9" * 5000, "(" * 300, "-" * 9000 + "1", "{[]: 1}", "\0", "１e"],
)
def test_a_strange_text_is_refused_in_a_short_line(text):
    with pytest.raises(settings.ConfigError, match=r"config\.optim\.clip=") as error:
        settings.override(settings.default(), f"optim.clip={text}")
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


def test_overrides_come_after_the_file_and_the_last_one_holds(tmp_path):
    spec = written(tmp_path / "c.py", "c.seed = 1", "c.train.steps = 7")
    config = settings.load(spec, ["seed=2", "seed=3"])
    assert (config.seed, config.train.steps) == (3, 7)
    assert config.is_locked


def test_a_config_takes_an_argument_behind_a_colon(tmp_path):
    spec = written(tmp_path / "c.py", "c.model.variant = argument or 'L/16'")
    assert settings.load(f"{spec}:S/14").model.variant == "S/14"
    assert settings.load(spec).model.variant == "L/16"


def test_a_file_written_within_the_same_second_is_read_anew(tmp_path):
    spec = written(tmp_path / "c.py", "c.seed = 1")
    stamp = os.stat(spec)
    assert settings.load(spec).seed == 1
    written(tmp_path / "c.py", "c.seed = 2")
    os.utime(spec, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert settings.load(spec).seed == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c.py"]


def test_a_config_may_refuse_its_argument_in_its_own_words(tmp_path):
    spec = written(tmp_path / "c.py", "raise base.ConfigError(f'no {argument}')")
    with pytest.raises(settings.ConfigError, match=r"c\.py, line 6: no huge$"):
        settings.load(f"{spec}:huge")


def test_json_holds_every_field_and_comes_back(tmp_path):
    config = settings.load(written(tmp_path / "c.py"), ["seed=3"])
    saved = json.loads(settings.to_json(config))
    assert saved["seed"] == 3 and saved["masks"]["ratio"] == [0.1, 0.5]
    assert settings.differences(config, saved) == []


def test_differences_name_what_changed_came_and_went():
    config = settings.default()
    config.loss.targets = "sinkhorn"
    saved = json.loads(settings.to_json(config))
    saved["seed"], saved["old"] = 9, {"key": "x"}
    saved["optim"]["betas"] = [0.9, 0.95]
    # Of an earlier version, which had neither: what is set now differs, a default not.
    del saved["loss"]["targets"], saved["mesh"]["reduce_heads"]
    assert settings.differences(config, saved) == [
        "loss.targets: 'centering' -> 'sinkhorn'",
        "old.key: 'x' -> None",
        "optim.betas: [0.9, 0.95] -> [0.9, 0.999]",
        "seed: 9 -> 0",
    ]
