"""Files of heads: the range and all else that predictions depend on stand in them."""

import dataclasses

import arrays
import densefiles
import jax
import numpy as np
import pytest
import safetensors.numpy

from dinov2_jax import headfile, zoo
from dinov2_jax.cli import evaluate_depth, evaluate_depth_kitti, evaluate_segmentation
from dinov2_jax.convert import export, probes
from dinov2_jax.models import probes as modules

DEPTH = {
    "method": "lin1",
    "steps": 40,
    "batch_size": 8,
    "crop": (32, 32),
    "border": (0, 0, 0, 0),
    "degrees": 0.0,
    "kb_crop": False,
    "bins": 16,
    "upsample": 2,
    "min_depth": 0.5,
    "max_depth": 20.0,
    "lr": 0.02,
    "warmup": 5,
    "gradient_weight": 0.0,
    "loss_warmup": 10,
    "scale": 1000.0,
    "eval_crop": "none",
    "test_batch": 8,
    "log_every": 40,
}


def linear_depth(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Tensors of a linear depth head over one block of width 6."""
    return {
        "decode_head.conv_depth.weight": rng.normal(size=(8, 12, 1, 1)),
        "decode_head.conv_depth.bias": rng.normal(size=8),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Specs of a floor, a backbone, and a head that was trained up to 20 m."""
    home = tmp_path_factory.mktemp("head")
    metres = np.linspace(9.0, 2.0, 48)[:, None] + np.zeros(32)
    for part in ("train", "val"):
        for i in range(3):
            grey = (255 * metres / 10 + i).astype(np.uint8)
            image = np.repeat(grey[..., None], 3, 2)
            densefiles.save(home / part, str(i), image, metres)
    specs = tuple(
        f"pairs:{home / p / 'images'},{home / p / 'maps'}" for p in ("train", "val")
    )
    backbone = densefiles.backbone()
    job = densefiles.job(evaluate_depth, backbone, specs, home / "out", **DEPTH)
    rmse = evaluate_depth.run(job).metrics["rmse"]
    return specs, backbone, home / "out" / "head.safetensors", rmse


def judged(trained, tmp_path, task=evaluate_depth, head=None, **settings):
    """rmse of a head with some settings."""
    specs, backbone, path, _ = trained
    given = DEPTH | {"head": str(head or path)} | settings
    return task.run(densefiles.job(task, backbone, specs, tmp_path, **given)).metrics


def test_a_head_is_loaded_with_the_range_it_was_trained_with(trained, tmp_path):
    path, rmse = trained[2], trained[3]
    head, _ = zoo.load_head(path)
    assert (head.min_depth, head.max_depth, head.upsample) == (0.5, 20.0, 2)
    note = headfile.note(path)
    assert note["task"] == "task" and note["method"] == "lin1"
    assert note["blocks"] == [3] and note["crop"] == [32, 32] and not note["norm"]
    assert note["backbone"] == {
        "width": 48,
        "depth": 4,
        "patch_size": 8,
        "registers": 0,
    }
    # Where the file lies and what it is called tells nothing.
    other = tmp_path / "kitti.safetensors"
    other.write_bytes(path.read_bytes())
    assert zoo.load_head(other)[0] == head
    assert judged(trained, tmp_path, head=other)["rmse"] == pytest.approx(rmse)
    with pytest.raises(ValueError, match="is a head of max_depth=20 m, not 10 m"):
        zoo.load_head(path, max_depth=10.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_depth": 10.0}, "with max_depth=20.0 and not 10.0; set what"),
        ({"min_depth": 0.1}, "with min_depth=0.5 and not 0.1"),
        ({"upsample": 4}, "with upsample=2 and not 4"),
        ({"method": "dpt"}, "with blocks=.*method=lin1 and not dpt"),
        (
            {"task": evaluate_segmentation, "crop": 32, "stride": 16, "classes": 2},
            "is a head for linear depth, not for segmentation",
        ),
        (
            {"task": evaluate_depth_kitti, "max_depth": 80.0},
            "max_depth=20.0 and not 80",
        ),
    ],
)
def test_what_disagrees_with_a_head_is_refused(trained, tmp_path, settings, told):
    with pytest.raises(ValueError, match=told) as caught:
        judged(trained, tmp_path, **settings)
    assert "\n" not in str(caught.value)


def test_a_head_of_another_backbone_is_refused(trained, tmp_path):
    specs, _, path, _ = trained
    given = DEPTH | {"head": str(path)}
    other = densefiles.backbone(depth=5)
    with pytest.raises(ValueError, match=r"blocks=\[3\] and not \[4\], backbone="):
        evaluate_depth.run(
            densefiles.job(evaluate_depth, other, specs, tmp_path, **given)
        )


def test_a_head_of_other_weights_is_warned_of(trained, tmp_path, capsys):
    specs, backbone, path, rmse = trained
    given = DEPTH | {"head": str(path)}
    other = dataclasses.replace(backbone, sha256="1" * 64)
    job = densefiles.job(evaluate_depth, other, specs, tmp_path, **given)
    job = job.opened(evaluate_depth.inputs)
    assert evaluate_depth.run(job).metrics["rmse"] == pytest.approx(rmse)
    assert "was trained on other weights" in capsys.readouterr().err
    assert any("other weights" in text for text in job.warnings)


def test_a_file_without_a_range_takes_that_of_the_settings_and_says_so(
    trained, tmp_path, capsys
):
    bare = tmp_path / "bare.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(trained[2]), bare)
    assert judged(trained, tmp_path, head=bare)["rmse"] == pytest.approx(trained[3])
    line = "bare.safetensors does not tell the range of its depths: min_depth=0.5"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "metres", "guess"),
    [
        ("dinov2_vits14_kitti_linear_head.pth", 80.0, False),
        ("dinov2_vits14_nyu_linear_head.pth", 10.0, False),
        ("my_KITTI.pth", 80.0, True),
        ("mine.pth", 10.0, True),
    ],
)
def test_a_guess_is_called_a_guess(name, metres, guess, tmp_path, capsys):
    path, state = tmp_path / name, linear_depth(np.random.default_rng(0))
    arrays.write_torch(path, {k: v.astype(np.float32) for k, v in state.items()})
    assert zoo.load_head(path)[0].max_depth == metres
    told = capsys.readouterr().err
    assert (f"{metres:g} m is a guess" in told) == guess and bool(told) == guess
    if guess:
        assert zoo.load_head(path, max_depth=33.0)[0].max_depth == 33
        assert not capsys.readouterr().err
    else:
        with pytest.raises(ValueError, match=f"max_depth={metres:g} m, not 33 m"):
            zoo.load_head(path, max_depth=33.0)


def test_the_name_of_a_release_tells_its_range(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path))  # as if downloaded before
    state = linear_depth(np.random.default_rng(0))
    state = {name: value.astype(np.float32) for name, value in state.items()}
    for data, metres in headfile.RANGES.items():
        name = f"dinov2_vits14_{data}_linear"
        arrays.write_torch(tmp_path / f"{name}_head.pth", state)
        assert zoo.load_head(name)[0].max_depth == metres
        with pytest.raises(ValueError, match=f"head of max_depth={metres:g} m"):
            zoo.load_head(name, max_depth=90 - metres)


def test_a_note_that_is_no_number_is_refused(tmp_path):
    path, state = tmp_path / "head.safetensors", linear_depth(np.random.default_rng(0))
    for value in ("far", -1.0, True, None):
        export.write_safetensors(path, state, {"max_depth": value})
        with pytest.raises(ValueError, match=f"tells max_depth={value!r}, which is no"):
            zoo.load_head(path)


@pytest.mark.parametrize("key", ["min_depth", "max_depth"])
@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "80", True])
def test_a_range_that_is_none_is_refused(tmp_path, key, value):
    path, state = tmp_path / "head.safetensors", linear_depth(np.random.default_rng(0))
    export.write_safetensors(path, state, {})
    with pytest.raises(ValueError, match=f"^{key}={value!r}; give metres, a number"):
        zoo.load_head(path, **{key: value})


@pytest.mark.parametrize("ends", [(20.0, 10.0), (10.0, 10.0), (11.0, None)])
def test_a_range_that_ends_before_it_begins_is_refused(tmp_path, ends):
    path, state = tmp_path / "head.safetensors", linear_depth(np.random.default_rng(0))
    given = dict(zip(("min_depth", "max_depth"), ends))
    told = {key: value for key, value in given.items() if value is not None}
    for note, asked in ((told, {}), ({}, told)):
        export.write_safetensors(path, state, note)
        with pytest.raises(
            ValueError, match="m is not below max_depth=10 m; give both"
        ):
            zoo.load_head(path, **asked)


def test_an_enlargement_that_is_not_whole_is_refused(tmp_path):
    path, state = tmp_path / "head.safetensors", linear_depth(np.random.default_rng(0))
    export.write_safetensors(path, state, {"upsample": 2.5})
    with pytest.raises(
        ValueError, match=r"tells upsample=2\.5, which is no whole number"
    ):
        zoo.load_head(path)


def test_bins_of_a_range_give_depths_in_it():
    state = linear_depth(np.random.default_rng(0))
    head, variables = probes.read_head(state, 20.0, 0.5, 3)
    assert head == modules.LinearDepth(8, 0.5, 20.0, 3)
    layers = [(jax.random.normal(jax.random.key(0), (1, 2, 2, 6)), np.zeros((1, 6)))]
    made = head.apply(variables, layers)
    assert made.shape == (1, 6, 6) and 0.5 <= made.min() <= made.max() <= 20


def test_a_segmentation_head_carries_its_classes(tmp_path):
    specs = densefiles.coin_folders(tmp_path)
    backbone, out = densefiles.backbone(depth=2), tmp_path / "out"
    small = {"steps": 2, "batch_size": 8, "crop": 32, "side": 64, "stride": 32}
    small |= {"warmup": 1}

    def run(**more):
        given = small | more
        evaluate_segmentation.run(
            densefiles.job(evaluate_segmentation, backbone, specs, out, **given)
        )

    run()
    note = headfile.note(out / "head.safetensors")
    assert note["classes"] == ["ground", "coin"] and note["blocks"] == [1]
    assert note["norm"] and note["weights_sha256"] == "0" * 64
    for part in ("train", "val"):
        (tmp_path / part / "maps" / "classes.txt").write_text("coin\nground\n")
    with pytest.raises(ValueError, match=r"classes=\['ground', 'coin'\] and not"):
        run(head=str(out / "head.safetensors"))
