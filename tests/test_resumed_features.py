"""Features that were stopped within a shard: nothing is lost, and nothing differs."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import peers
import pytest
from PIL import Image

import dinov2_jax
from dinov2_jax import __main__ as command
from dinov2_jax import shards
from dinov2_jax.cli import storing
from dinov2_jax.convert import export, names
from dinov2_jax.data import build


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow backbone as a file."""
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export.write_safetensors(path, state, export.about(built))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """70 images, one of them broken."""
    folder, rng = tmp_path_factory.mktemp("data") / "images", np.random.default_rng(0)
    for i in range(70):
        path = folder / f"class{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    (folder / "class1/11.png").write_bytes(b"no image")
    return folder


SIZES = {"resize": 36, "crop": 32, "batch_size": 8, "shard_size": 64}


def embed(weights, images, out, **changes):
    """Features of all images in two shards."""
    settings = SIZES | {"what": ("cls", "mean_patch")} | changes
    return dinov2_jax.embed(weights, f"folder:{images}", out, **settings)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of a folder."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def whole(weights, images, tmp_path_factory):
    """Features that were made in one go."""
    out = tmp_path_factory.mktemp("features") / "out"
    embed(weights, images, out)
    return out


@pytest.fixture
def stopped(weights, images, tmp_path, monkeypatch):
    """Features that stopped after three batches of the first shard."""
    read, left = build.EvalBuilder.__call__, [3]

    def stops(self, step):
        if int(step) >= left[0]:
            raise RuntimeError("stopped by the test")
        return read(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(storing, "SAVE", 0.0)
        patch.setattr(storing, "SHARE", 0.0)
        patch.setattr(build.EvalBuilder, "__call__", stops)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            embed(weights, images, tmp_path / "out")
    return tmp_path / "out"


def test_a_stopped_shard_goes_on_where_it_was(whole, stopped, weights, images, capsys):
    with pytest.raises(ValueError, match="2 of 2 shards .* are not written yet"):
        shards.open_features(stopped)
    capsys.readouterr()
    embed(weights, images, stopped)
    done = int(
        capsys.readouterr().err.partition(" of 70 images are there")[0].split()[-1]
    )
    assert done in (8, 16)  # the devices are a batch ahead of what is written
    assert contents(stopped) == contents(whole)


def test_a_stopped_shard_goes_on_with_batches_of_another_size(
    whole, stopped, weights, images
):
    kinds, index, _ = embed(weights, images, stopped, batch_size=32)
    same, known, _ = shards.open_features(whole)
    assert index.equals(known)
    for kind in kinds:  # products of another shape are summed in another order
        np.testing.assert_allclose(kinds[kind][:], same[kind][:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cls/00000.npy.part", "index/00000.parquet.part"])
@pytest.mark.parametrize("how", [pathlib.Path.unlink, lambda x: x.write_bytes(b"half")])
def test_what_is_half_written_is_made_again(name, how, whole, stopped, weights, images):
    how(stopped / name)
    embed(weights, images, stopped)
    assert contents(stopped) == contents(whole)


def test_a_killed_evaluation_loses_no_whole_shard(whole, weights, images, tmp_path):
    given = ["evaluate", "knn", f"--weights={weights}", f"--train=folder:{images}"]
    given += [f"--val=folder:{images}", f"--out={tmp_path / 'out'}"]
    sizes = ("resize=36", "crop=32", "batch_size=8", "neighbors=3")
    given += [f"--set={x}" for x in sizes]
    process = subprocess.Popen(
        [sys.executable, "-m", "dinov2_jax", *given],
        stderr=subprocess.PIPE,
        text=True,
    )
    features = tmp_path / "out" / "features"
    while not list(features.glob("*/index/*.parquet*")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(features.glob("*/index/*.parquet*"))
    assert command.main(given) == 0
    (made,) = features.iterdir()
    rows = shards.open_features(made)[0]["cls"]
    np.testing.assert_array_equal(rows[:], shards.open_features(whole)[0]["cls"][:])


def test_images_are_counted_while_a_shard_is_made(weights, images, tmp_path, capsys):
    embed(weights, images, tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    counted = [line for line in lines if line.startswith("image ")]
    assert counted[0].startswith("image 8/70 ")
    assert counted[-1].startswith("image 70/70 ") and "1 skipped" in counted[-1]


def test_refused_settings_do_not_stop_the_right_ones(weights, images, tmp_path):
    out = tmp_path / "out"
    for wrong in ({"crop": 40}, {"crop": 30}, {"threads": 0}, {"what": ("registers",)}):
        with pytest.raises(ValueError):
            embed(weights, images, out, **wrong)
        assert not out.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storing, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # after the folder was claimed
            embed(weights, images, out, crop=24)
    assert (out / "manifest.json").exists()
    assert embed(weights, images, out)[2]["crop"] == 32
    with pytest.raises(ValueError, match="another making.*crop: 32 -> 24"):
        embed(weights, images, out, crop=24)
