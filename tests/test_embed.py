"""Features on disk: whole or missing, the same after a stop, and read without loading."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from PIL import Image

import dinov2_jax
from dinov2_jax import __main__ as command
from dinov2_jax import shards, zoo
from dinov2_jax.convert import export, names
from dinov2_jax.data import build, demo, sources
from dinov2_jax.data.batch import normalize


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow backbone with registers, as a file."""
    built = peers.model(registers=4, patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export.write_safetensors(path, state, export.about(built))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """70 images of many sizes, two of them broken."""
    folder, rng = tmp_path_factory.mktemp("embed") / "images", np.random.default_rng(0)
    for i in range(70):
        path = folder / f"class{i % 3}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + i, 60 - i // 2, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
    for name in ("class1/01.png", "class2/50.png"):
        (folder / name).write_bytes(b"no image")
    return folder


SIZES = {"resize": 36, "crop": 32, "batch_size": 8, "shard_size": 16}


def made(weights, images, out, **changes):
    """The call of these tests."""
    settings = SIZES | {"what": ("cls", "registers", "mean_patch", "patches")} | changes
    return dinov2_jax.embed(weights, f"folder:{images}", out, **settings)


@pytest.fixture(scope="module")
def whole(weights, images, tmp_path_factory):
    """Features of all images."""
    out = tmp_path_factory.mktemp("features") / "out"
    made(weights, images, out)
    return out


def test_every_image_has_its_features_and_its_line(whole, weights):
    kinds, index, manifest = dinov2_jax.open_features(whole)
    assert {kind: rows.shape for kind, rows in kinds.items()} == {
        "cls": (70, 48),
        "registers": (70, 4, 48),
        "mean_patch": (70, 48),
        "patches": (70, 16, 48),
    }
    assert index["record"].to_pylist() == list(range(70))
    broken = {"class1/01.png", "class2/50.png"}
    model, params = zoo.load_backbone(None, weights)
    for row in (0, 17, 33, 69):
        line = index.slice(row, 1).to_pylist()[0]
        path = pathlib.Path(line["name"])
        assert line["label"] == int(path.parent.name[-1]) and line["ok"]
        assert (line["shard"], line["row"]) == divmod(row, 16)
        pixels = build.center_crop(np.asarray(Image.open(path)), 36, 32)
        out = model.apply({"params": params}, normalize(jnp.asarray(pixels[None])))
        # alone or in a batch, on one device or eight: products in another order
        close = {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(kinds["cls"][row], out.cls[0], **close)
        np.testing.assert_allclose(kinds["patches"][row], out.patches[0], **close)
        mean = out.patches[0].mean(0)
        np.testing.assert_allclose(kinds["mean_patch"][row], mean, **close)
    bad = [x for x in index.to_pylist() if not x["ok"]]
    assert {"/".join(x["name"].split("/")[-2:]) for x in bad} == broken
    rows = [x["record"] for x in bad]
    assert not kinds["cls"][rows].any() and {x["label"] for x in bad} == {-1}
    named = (whole / "skipped.txt").read_text().splitlines()
    assert {"/".join(name.split("/")[-2:]) for name in named} == broken
    assert manifest["what"] == list(kinds) and not list(whole.rglob("*.part"))


def test_rows_are_read_by_number_across_shards(whole):
    rows = dinov2_jax.open_features(whole)[0]["cls"]
    everything = np.concatenate(list(rows.blocks(9)))
    assert everything.shape == rows.shape and len(rows) == 70
    some = np.array([69, 0, 16, 15, 16])
    assert (rows[some] == everything[some]).all()
    assert (rows[10:40:7] == everything[10:40:7]).all()
    assert (rows[-1] == everything[-1]).all() and rows[-1].shape == (48,)
    assert isinstance(rows.parts[0], np.memmap)
    with pytest.raises(IndexError):
        rows[70]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of a folder."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_missing_shards_are_made_again_to_the_bit(whole, weights, images, tmp_path):
    out = tmp_path / "out"
    made(weights, images, out)
    for name in ("index/00001.parquet", "index/00003.parquet", "cls/00001.npy"):
        (out / name).unlink()
    (out / "patches/00003.npy.part").write_bytes(b"half")
    with pytest.raises(ValueError, match="2 of 5 shards.*are not written yet"):
        dinov2_jax.open_features(out)
    before = (out / "cls/00002.npy").stat().st_mtime_ns
    made(weights, images, out)
    assert contents(out) == contents(whole)
    assert (out / "cls/00002.npy").stat().st_mtime_ns == before


def test_a_killed_process_leaves_whole_shards_and_goes_on(
    whole, weights, images, tmp_path
):
    out = tmp_path / "out"
    given = [
        *("embed", f"--weights={weights}", f"--data=folder:{images}", f"--out={out}"),
        *("--what=cls,registers,mean_patch,patches", "--resize=36", "--crop=32"),
        *("--batch-size=8", "--shard-size=16"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "dinov2_jax", *given], stderr=subprocess.DEVNULL
    )
    while not list(out.glob("index/*.parquet")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = [p.name for p in out.glob("index/*.parquet")]
    assert there
    for name in there:
        shard = name.partition(".")[0] + ".npy"
        for kind in ("cls", "patches"):
            path = f"{kind}/{shard}"
            assert (out / path).read_bytes() == (whole / path).read_bytes()
    assert command.main(given) == 0
    assert contents(out) == contents(whole)


def test_features_of_another_making_are_refused(whole, weights, images):
    with pytest.raises(ValueError, match="another making.*crop: 32 -> 24"):
        made(weights, images, whole, crop=24)


def test_a_limited_half_precision_set_is_spread_over_the_source(
    weights, images, tmp_path
):
    kinds, index, _ = made(
        weights, images, tmp_path, what=("cls",), dtype="float16", limit=10
    )
    assert kinds["cls"].dtype == np.float16 and len(index) == 10
    assert index["record"].to_pylist() == [i * 7 for i in range(10)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"what": ("cls", "clss")}, "clss; choose some of cls, registers"),
        ({"batch_size": 9}, "9 images does not divide over 8 devices"),
        ({"shard_size": 20}, "20 images is no multiple of a batch of 8; choose 16"),
        ({"crop": 30}, "crop=30 is no multiple of the patch size 8"),
        ({"limit": 0}, "limit=0"),
        ({"crop": 40}, "crop=40 is larger than .* resize=36"),
        ({"resize": 0}, "resize=0; expected 1 to"),
        ({"threads": 0}, "threads=0; expected 1 to"),
        ({"workers": -1}, "workers=-1; expected 0 to"),
        ({"max_pixels": 0}, "max_pixels=0; expected 1 to"),
        ({"dtype": "float8"}, "dtype=float8; expected one of float32, float16"),
        ({"compute": "half"}, "compute=half; expected one of float32, bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    changes, words, weights, images, tmp_path
):
    with pytest.raises(ValueError, match=words):
        made(weights, images, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no features.*dinov2-jax embed"):
        shards.open_features(tmp_path)


def test_the_manifest_tells_weights_data_and_versions(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["records"] == 70 and len(manifest["weights_sha256"]) == 64
    assert manifest["versions"]["jax"] == jax.__version__
    assert os.path.basename(manifest["weights"]) == "model.safetensors"


@pytest.mark.torch
def test_the_evaluation_transform_is_the_official_one():
    peers.package("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    bicubic = transforms.InterpolationMode.BICUBIC
    official = transforms.Compose(
        [
            transforms.Resize(256, interpolation=bicubic),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    photographs = sources.open_source("demo:train").classes
    assert photographs
    for number, name in enumerate(photographs):
        pixels = demo.photograph(name)
        odd = pixels[: pixels.shape[0] - number, : pixels.shape[1] - 2 * number]
        want = official(Image.fromarray(odd)).numpy().transpose(1, 2, 0)
        got = normalize(build.center_crop(odd, 256, 224))
        # float32 rounding of (x / 255 - mean) / std
        np.testing.assert_allclose(got, want, atol=1e-6)
