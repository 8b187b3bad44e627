"""Settings of pixels and clips: a meaning and a range of each, checked first of all."""

import densefiles
import numpy as np
import pytest

from dinov2_jax import __main__ as command
from dinov2_jax.cli import evaluate, evaluate_segmentation, setting
from dinov2_jax.data import fingerprint

BOTH = (
    *("lr=0", "betas=1,1", "warmup_start=2", "batch_size=0", "compute=float16"),
    *("seed=-1", "test_batch=0", "threads=0", "save_every=0", "log_every=-1"),
    *("limit=-2", "pictures=-1", "check_limit=-1", "steps=0", "warmup=-1"),
    *("weight_decay=-0.1", "crop=0"),
)
SEGMENTATION = (
    *("blocks=0", "classes=-1", "first_id=-1", "ignore_id=-2", "side=0", "ratio=0,1"),
    *("most=1.5", "stride=0", "scales=1,0", "scales=1e999"),
)
DEPTH = (
    *("method=lin2", "bins=0", "upsample=0", "channels=1", "min_depth=0", "scale=0"),
    *("max_depth=-1", "floor=2", "clip=-1", "gradient_weight=-1", "loss_warmup=-1"),
    *("border=-1,0,0,0", "crop=0,5", "degrees=181", "brightness=0,1"),
    *("eval_crop=middle", "max_depth=1e999"),
)
TASKS = {
    "segmentation": BOTH + SEGMENTATION,
    "segmentation_ms": SEGMENTATION[-2:],
    "depth": BOTH + DEPTH,
    "depth_kitti": DEPTH[:2],
    "video": ("frames=0", "limit=-2", "pool=sum"),
}


@pytest.mark.parametrize(
    ("task", "text"), [(task, text) for task, some in TASKS.items() for text in some]
)
def test_what_is_out_of_range_is_refused_before_anything_is_opened(
    task, text, capsys, tmp_path
):
    given = ["--weights=none", "--train=pairs:none", "--val=pairs:none"]
    given += [f"--out={tmp_path / 'out'}", f"--set={text}"]
    assert command.main(["evaluate", task, *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{text.partition('=')[0]}=" in line and "; expected " in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_has_a_line_of_meaning_and_range(task, capsys):
    assert command.main(["evaluate", task, "--settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = evaluate.settings(task, {})
    assert [line.partition("=")[0] for line in lines] == list(vars(table))
    for line, (name, value) in zip(lines, vars(table).items()):
        meaning = line.removeprefix(f"{name}={value}").strip()
        assert len(meaning) > 10 and (meaning.endswith(")") or name in ("head", "ids"))


@pytest.mark.parametrize("task", TASKS)
def test_defaults_lie_in_their_ranges(task):
    table = evaluate._defaults(task)
    assert set(table.about) == set(table)
    for name, value in table.items():
        setting.require(name, value, table.about[name].range)


def test_classes_of_val_are_numbered_as_those_of_train_by_name(tmp_path):
    specs = densefiles.coin_folders(tmp_path)
    before = evaluate_segmentation.inputs(
        densefiles.job(evaluate_segmentation, densefiles.backbone(), specs, tmp_path)
    )["val"]
    (tmp_path / "val/maps/classes.txt").write_text("coin\nground\n")
    job = densefiles.job(
        evaluate_segmentation, densefiles.backbone(), specs, tmp_path, ignore_id=255
    )
    found = evaluate_segmentation.inputs(job)["val"]
    assert found.classes == before.classes == ("ground", "coin")
    old, new = before[0].target, found[0].target
    np.testing.assert_array_equal(new, np.where(old < 0, -1, 1 - old))
    np.testing.assert_array_equal(new, found.target(0))
    assert fingerprint.of(found) != fingerprint.of(before)
