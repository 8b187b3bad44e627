"""The command that times the training step, each batch size in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny

from dinov2_jax import __main__ as command
from dinov2_jax import flops
from dinov2_jax.cli import assemble, bench, timing

DEMO = pathlib.Path(__file__).parents[1] / "configs" / "demo.py"
SMALL = [
    "bench",
    "step",
    f"--config={DEMO}",
    "--config.model.width=32",
    "--config.model.depth=2",
    "--config.head.prototypes=32",
    "--config.crops.global_size=16",
    "--config.crops.local_size=8",
    "--steps=3",
]


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    """What the processes that are started see."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")


def test_steps_are_timed_and_told(tmp_path, capfd):
    path, trace = tmp_path / "out.json", tmp_path / "trace"
    options = [f"--json={path}", f"--trace={trace}"]
    assert command.main([*SMALL, "--batch-per-device=2", *options]) == 0
    out, err = capfd.readouterr()
    about, heads, row = out.splitlines()
    assert err == ""
    assert about == "Ti/8, float32, remat none, attention xla, unroll 1; cpu x 2"
    assert "MFU executed" in heads and row.split()[0] == "2"
    # A processor's peak is not known: no figure rather than a wrong one.
    assert row.split()[4:6] == ["unknown", "unknown"]
    assert {p.name for p in tmp_path.iterdir()} == {"out.json", "trace"}
    assert len(list(trace.glob("batch_2/**/*.xplane.pb"))) == 1
    found = json.loads(path.read_text())
    assert found["config"]["model"]["width"] == 32
    assert found["versions"]["jax"] == jax.__version__
    (result,) = found["results"]
    assert (result["batch_per_device"], result["group_size"]) == (2, 2)
    assert len(result["step_s"]) == 3 and min(result["step_s"]) > 0
    assert result["step_median_s"] <= result["step_p90_s"] <= max(result["step_s"])
    assert result["images_per_s"] == 2 * 2 / result["step_median_s"]
    assert result["mfu_nominal"] is None and result["memory_of"] == "process"
    assert 2**27 < result["memory_bytes"] < 2**35
    assert 0 < result["executed_flops"] == result["nominal_flops"]
    assert 0 < result["first_loss"] < 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "setting", "why"),
    [
        # Petabytes of pixels, and prototypes of a terabyte.
        (f"{10**12},{10**13}", "train.group_size=2", "Unable to allocate"),
        ("2,4", f"head.prototypes={2**31 - 1}", "RESOURCE_EXHAUSTED"),
    ],
    ids=["host", "device"],
)
def test_a_batch_that_memory_does_not_hold_is_told_and_the_last(
    sizes, setting, why, capfd, tmp_path
):
    path = tmp_path / "out.json"
    options = [f"--batch-per-device={sizes}", f"--config.{setting}", f"--json={path}"]
    assert command.main([*SMALL, *options]) == 1
    *_, row = capfd.readouterr().out.splitlines()
    assert f"{sizes.split(',')[0]}  does not fit: {why}" in row
    (result,) = json.loads(path.read_text())["results"]
    assert (result["fits"], result["end"]) == (False, "full")
    assert why in result["why"]


def test_a_process_that_fails_is_a_line_and_the_command_itself_needs_no_device():
    done = subprocess.run(
        [sys.executable, "-m", "dinov2_jax", *SMALL, "--batch-per-device=2,4"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "none_such"},
    )
    assert done.returncode == 1
    *_, row = done.stdout.splitlines()
    assert row.strip() == "2  failed: ended with code 1; its error stands above"
    assert "none_such" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-per-device=1"], "KoLeo needs a neighbour"),
        (["--config.crops.global_size=20"], "choose 16 or 24"),
        (["--batch=8"], "unknown option '--batch=8'"),
        (["--config.model.widht=8"], "did you mean"),
        (["--json=none_such/out.json"], "none_such/out.json: its folder"),
    ],
)
def test_what_is_wrong_is_one_line(options, words, capfd):
    assert command.main([*SMALL, "--batch-per-device=2", *options]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("dinov2-jax bench: ") and words in err


@pytest.mark.parametrize("option", ["--batch-per-device=8,x", "--steps=0"])
def test_an_option_out_of_range_shows_how_it_is_used(option, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([*SMALL, option])
    assert end.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]


def tried(most: int, *sweep, memory_of: str = "device") -> list[int]:
    """The sizes that a sweep tries on two devices that hold `most` images each."""

    def one(size: int) -> dict:
        if size > most:
            return {"size": size, "fits": False, "end": "full"}
        about = {"device": "a device", "devices": 2, "memory_of": memory_of}
        return {"size": size, "fits": True} | about

    return [result["size"] for result in bench.sweep(one, *sweep)]


def test_sizes_are_tried_until_memory_ends():
    assert tried(40, [8, 16, 32], 64, 64) == [8, 16, 32]
    assert tried(10, [8, 16, 32], 64, 64) == [8, 16]


def test_sizes_double_until_memory_ends_and_halve_the_last_gap():
    assert tried(70, [], 64, 4096) == [8, 16, 32, 64, 128, 96]
    assert tried(40, [], 12, 4096) == [12, 24, 48, 36]
    assert tried(40, [], 2, 4096) == [8, 16, 32, 64, 48]
    assert tried(4, [], 64, 4096) == [8]
    # No further than the config's own batch, on two devices here.
    assert tried(10**6, [], 64, 256) == [8, 16, 32, 64, 128]


def test_sizes_do_not_double_where_the_end_of_memory_is_not_seen():
    assert tried(40, [8, 16], 64, 4096, memory_of="process") == [8, 16]
    with pytest.raises(ValueError, match=r"name them.*--batch-per-device=8,16"):
        tried(40, [], 64, 4096, memory_of="process")


@pytest.mark.parametrize(("size", "group"), [(2, 2), (4, 4), (6, 3), (12, 4), (7, 1)])
def test_a_group_is_the_largest_part_of_the_batch(size, group):
    config = tiny.config(train__group_size=4, loss__koleo_weight=0.0)
    timing.set_batch(config, size, 3)
    assert (config.train.batch_size, config.train.group_size) == (3 * size, group)


@pytest.mark.slow
@pytest.mark.parametrize("separate", [False, True])
def test_the_step_that_is_timed_is_the_one_that_is_counted(separate):
    config = tiny.config(head__separate=separate, model__drop_path=0.4)
    model = assemble.model(config)
    batch = timing.synthetic(config, model.backbone.patch_size)
    assert jax.tree.map(jnp.shape, batch) == jax.tree.map(
        jnp.shape, tiny.batch(config, 0)
    )
    assert batch.masks.any() and batch.mask_weights.sum() > 0
    counted = timing.operations(config, model)
    assert counted == flops.step(
        model,
        batch=16,
        groups=8,
        global_size=16,
        global_number=2,
        local_size=8,
        local_number=2,
        masked=batch.mask_indices.size,
    )
    assert counted.saved > 0


def test_every_timed_step_is_counted_once_and_changes_the_state():
    update = jax.jit(lambda state, batch: (state + batch, {"loss": state}))
    state, taken = timing.timed(update, jnp.float32(0), jnp.float32(1), 4)
    assert state == 4 + timing.WARM and len(taken) == 4 and min(taken) > 0


def test_the_figures_follow_from_what_was_measured():
    timing_of = timing.Timing(
        kind="NVIDIA H200",
        devices=2,
        process=0,
        batch=8,
        group=4,
        compile_s=1.0,
        step_s=(0.5, 0.5, 0.5, 1.0),
        memory=2**30,
        memory_of="device",
        flops=flops.Flops(backbone=3 * 10**14, heads=10**14, saved=10**14, remat=5),
        peak=8e14,
        loss=1.0,
    )
    found = timing_of.figures()
    assert found["images_per_s"] == 8 / 0.5
    assert found["step_p90_s"] == pytest.approx(0.85)  # linear between 0.5 and 1.0
    # 4e14 and 3e14 operations of the 8e14 that two devices could do in half a second.
    assert (found["mfu_nominal"], found["mfu_executed"]) == (0.5, 0.375)
    assert bench.row(found).split()[4:7] == ["50.0%", "37.5%", "1.00"]


def test_a_process_that_was_ended_from_outside_is_told_apart():
    assert bench.ended(-9)[0] == "full"
    assert bench.ended(-11) == ("failed", "ended by SIGSEGV")
