"""Weights that no command takes, each with the line that it prints."""

import arrays
import numpy as np
import peers
import pytest
import tiny

from dinov2_jax import config as settings
from dinov2_jax.__main__ import main
from dinov2_jax.cli import embed, evaluate
from dinov2_jax.convert import timm

SIZES = {"width": 32, "heads": 2, "depth": 1, "patch_size": 4, "image_size": 16}


def official(seed: int = 0, **changes) -> dict[str, np.ndarray]:
    """The state dict of a small backbone that does not tell its heads."""
    return peers.official(peers.model(0, "mlp", **(SIZES | changes)), seed)


def with_nan() -> dict[str, np.ndarray]:
    """A backbone of a run that diverged."""
    return {
        n: np.full_like(v, np.nan) if "qkv" in n else v for n, v in official().items()
    }


def other(*names: str) -> dict[str, np.ndarray]:
    """Tensors of which only the names matter."""
    return {name: np.zeros(2, np.float32) for name in names}


def twins() -> dict[str, np.ndarray]:
    """Two backbones of equal rank."""
    return {f"{key}.{n}": v for key in ("left", "right") for n, v in official().items()}


WEIGHTS = {
    "weights with NaN": (with_nan, ["--num-heads=2"], "hold NaN or infinity"),
    "weights that do not tell their heads": (official, [], "--num-heads"),
    "heads that do not divide the width": (
        official,
        ["--num-heads=5"],
        "heads=5 does not divide the width of 32",
    ),
    "two backbones in a file": (twins, [], "choose one by prefix= (--prefix, "),
    "a prefix of nothing": (twins, ["--prefix=up"], "no backbone stands there"),
    "a position table that is not square": (
        lambda: official(image_size=(8, 12)),
        ["--num-heads=2"],
        "--image-size=ROWSxCOLUMNS",
    ),
    "a tensor too few": (
        lambda: {
            n: v for n, v in timm.from_official(official()).items() if n != "norm.bias"
        },
        ["--num-heads=2"],
        "missing norm.bias",
    ),
    "MAE": (lambda: other("cls_token", "decoder_embed.weight"), [], "like MAE"),
    "DINOv3": (lambda: other("storage_tokens", "cls_token"), [], "a DINOv3 backbone"),
    "CLIP": (lambda: other("visual.class_embedding"), [], "looks like CLIP"),
    "SAM": (lambda: other("image_encoder.blocks.0.attn.rel_pos_h"), [], "like SAM"),
}
"""What is wrong -> weights, options and words of the line."""


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_that_cannot_be_used_are_one_line(tmp_path, capsys, told, what):
    make, options, words = WEIGHTS[what]
    path = arrays.write_torch(tmp_path / "weights.pth", make())
    out = tmp_path / "out"
    assert main(["convert", f"--from={path}", "--to=safetensors", str(out), *options])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in said
    assert {p.name for p in tmp_path.iterdir()} == {"weights.pth"}
    told(what, said)


CHOICES = ["--which=student", "--prefix=model", "--num-heads=2", "--partial"]


def test_embed_and_evaluate_load_what_convert_loads(tmp_path, capsys):
    content = {"state_dict_ema": twins(), "state_dict": {}}
    for name, value in official(5).items():
        content["state_dict"][f"model.{name}"] = value
    del content["state_dict"]["model.norm.bias"]
    path = arrays.write_torch(tmp_path / "weights.pth", content)
    out = tmp_path / "features"
    options = ["--data=demo:val", f"--out={out}", "--limit=8", "--crop=16"]
    options += ["--resize=16", "--batch-size=8", "--shard-size=8"]
    assert main(["embed", f"--weights={path}", *options, *CHOICES]) == 0
    said = capsys.readouterr().err
    assert "took the backbone under 'state_dict.model.'" in said
    assert "missing 1: norm.bias" in said and "guess" not in said
    parsed = evaluate.arguments(["knn", f"--weights={path}", *CHOICES])
    assert evaluate._backbone(parsed).model.heads == 2
    assert embed.arguments(
        ["--weights=a", *options, "--image-size=8x12"]
    ).image_size == (
        8,
        12,
    )


@pytest.mark.parametrize(
    "what, choice, words",
    [
        ("a step that a run has not", "@7", "holds no checkpoint '7'; choose best or"),
        ("the best of a run without accuracies", "@best", "so that none is the best"),
        ("a damaged checkpoint", "@5", "/5 cannot be read ("),
        ("a run whose checkpoints are all damaged", "", "/5 cannot be read ("),
    ],
)
def test_checkpoints_that_cannot_be_used_are_one_line(
    tmp_path, capsys, told, what, choice, words
):
    (tmp_path / "run" / "checkpoints" / "5" / "state").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(settings.to_json(tiny.config()))
    out = tmp_path / "out.pth"
    source = f"{tmp_path / 'run'}{choice}"
    assert main(["convert", f"--from={source}", "--to=safetensors", str(out)]) == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert words in said and not out.exists()
    told(what, said)
