"""The description beside a .pth file: written with it, read with it, and of it alone."""

import json

import arrays
import numpy as np
import peers
import pytest

from dinov2_jax import zoo
from dinov2_jax.__main__ import main
from dinov2_jax.convert import check, export, read, sidecar


def model(**changes):
    """A backbone of a released width with another number of heads than released."""
    sizes = {"width": 192, "heads": 6, "depth": 1, "patch_size": 4, "image_size": 16}
    return peers.model(0, "mlp", **(sizes | {"offset": 0.0} | changes))


def write(path, built, about=None):
    """An official file by hand, and the description of it."""
    arrays.write_torch(path, peers.official(built))
    sidecar.write(path, export.about(built) if about is None else about)
    return path


def test_a_file_with_its_description_gives_the_model_that_it_came_from(
    tmp_path, capsys
):
    built = model()
    path = write(tmp_path / "run.pth", built)
    assert zoo.load_backbone(None, path)[0] == built
    assert "guess" not in capsys.readouterr().err
    sidecar.place(path).unlink()
    guessed, _ = zoo.load_backbone(None, path)
    assert (guessed.heads, guessed.offset) == (3, 0.1)
    assert f"{path}: 3 attention heads are a guess from width 192" in (
        capsys.readouterr().err
    )
    told, _ = zoo.load_backbone(None, path, heads=6)
    assert told.heads == 6 and "guess" not in capsys.readouterr().err


def test_heads_that_nothing_tells_are_refused(tmp_path):
    path = arrays.write_torch(tmp_path / "a.pth", peers.official(model(width=48)))
    with pytest.raises(ValueError, match=r"width 48 is of no released model; .*heads="):
        zoo.load_backbone(None, path)
    for heads, words in ((5, "does not divide the width of 48"), (0, "heads=0")):
        with pytest.raises(ValueError, match=words):
            zoo.load_backbone(None, path, heads=heads)
    other = write(tmp_path / "b.pth", model())
    with pytest.raises(ValueError, match="heads=3, but its own description says 6"):
        zoo.load_backbone(None, other, heads=3)


def test_a_description_of_another_file_or_damaged_is_refused(tmp_path):
    path = write(tmp_path / "run.pth", model())
    arrays.write_torch(path, peers.official(model(depth=2)))
    with pytest.raises(
        ValueError, match=r"run\.pth\.json describes a file of \d+ bytes"
    ):
        read.read_weights(path)
    for text in ("{", '{"dinov2_jax": 3}'):
        sidecar.place(path).write_text(text)
        with pytest.raises(
            ValueError, match=r"should describe run\.pth, but is no JSON"
        ):
            read.read_weights(path)
    for text in ("[1]", '{"mine": 1}'):  # of somebody else
        sidecar.place(path).write_text(text)
        assert "guess" in read.read_weights(path).guess
    write(path, model(), {"heads": 7})
    with pytest.raises(ValueError, match="heads=7 at width 192"):
        read.read_weights(path)


@pytest.mark.torch
@pytest.mark.parametrize("form", ["official", "timm"])
def test_what_convert_writes_is_read_back_as_the_same_model(tmp_path, form, capsys):
    torch = peers.package("torch", "torch")
    built, source = model(), tmp_path / "source.safetensors"
    export.write_safetensors(source, peers.official(built), export.about(built))
    out = tmp_path / "run.pth"
    command = ["convert", f"--from={source}", f"--to={form}"]
    if form == "official":
        peers.dinov2()
    assert main([*command, str(out)]) == 0
    assert zoo.load_backbone(None, out)[0] == built
    note = json.loads((tmp_path / "run.pth.json").read_text())
    assert note["dinov2_jax"]["heads"] == 6 and note["bytes"] == out.stat().st_size
    if form == "official":  # the file itself stays what the official code loads
        state = torch.load(out, weights_only=True)
        assert set(state) == set(peers.official(built))
    out.unlink()
    assert main([*command, str(out)]) == 1  # the description is not overwritten
    assert "run.pth.json exists" in capsys.readouterr().err


def test_convert_takes_the_heads_that_the_file_does_not_tell(tmp_path, capsys):
    built = model(width=48)
    path = arrays.write_torch(tmp_path / "a.pth", peers.official(built))
    out = tmp_path / "b.safetensors"
    command = ["convert", f"--from={path}", "--to=safetensors", str(out)]
    assert main(command) == 1
    assert "--num-heads" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--num-heads=6"]) == 0
    assert zoo.load_backbone(None, out)[0].heads == 6


def test_convert_chooses_by_prefix_and_completes_by_partial(tmp_path, capsys):
    states = {key: peers.official(model(), seed) for seed, key in enumerate("ab")}
    both = {f"{key}.{n}": v for key, s in states.items() for n, v in s.items()}
    del both["b.norm.bias"]
    path = arrays.write_torch(tmp_path / "a.pth", both)
    out = tmp_path / "b.safetensors"
    command = ["convert", f"--from={path}", "--to=safetensors", str(out)]
    assert main([*command, "--num-heads=6"]) == 1
    assert "choose one by prefix= (--prefix, " in capsys.readouterr().err
    command += ["--num-heads=6", "--prefix=b"]
    assert main(command) == 1
    assert "norm.bias" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--partial"]) == 0
    assert "missing 1: norm.bias" in capsys.readouterr().err
    found = read.read_weights(out).backbone
    assert not found["norm.bias"].any()
    del found["norm.bias"], states["b"]["norm.bias"]
    assert all(check.same(found[n], v) for n, v in states["b"].items())
    assert np.isfinite(found["pos_embed"]).all()
