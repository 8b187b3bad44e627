"""The range of deep images and the rule for damaged ones reach all that decodes."""

import io
import json

import numpy as np
import peers
import pytest
import rasters
import tiny
from PIL import Image

import dinov2_jax
from dinov2_jax import __main__ as command
from dinov2_jax import sharding
from dinov2_jax.cli import depths, evaluate, feeding, frozen, train
from dinov2_jax.convert import export, names
from dinov2_jax.data import decode, dense, labelled, pipeline, rules, sources, walk

SIZE = {"resize": 32, "crop": 32, "batch_size": 8}
CORRUPT = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 100).convert("RGB")


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """Float TIFFs of two classes, whose samples run from 0.25 to 0.75."""
    root, rng = tmp_path_factory.mktemp("floats"), np.random.default_rng(0)
    for i in range(16):
        path = root / "ab"[i % 2] / f"{i:02}.tif"
        path.parent.mkdir(exist_ok=True)
        samples = rng.uniform(0.25, 0.75, (40, 48)).astype(np.float32)
        samples[0, :2] = 0.25, 0.75
        path.write_bytes(rasters.tiff(samples))
    return root


@pytest.fixture(scope="module")
def corrupt(tmp_path_factory):
    """Eight JPEGs, the last of them half lost."""
    root = tmp_path_factory.mktemp("corrupt")
    (root / "a").mkdir()
    buffer = io.BytesIO()
    CORRUPT.save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    for i in range(8):
        lost = data[: len(data) // 2] + bytes(len(data) // 2) + b"\xff\xd9"
        body = data if i < 7 else lost
        (root / "a" / f"{i}.jpg").write_bytes(body)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow backbone as a file."""
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export.write_safetensors(path, state, export.about(built))
    return path


def scaled(root):
    """The pixels of each file, by the definition."""
    paths = sorted(root.rglob("*.tif"))
    samples = [np.frombuffer(p.read_bytes()[8 : 8 + 40 * 48 * 4], "<f4") for p in paths]
    return [np.rint((x.reshape(40, 48) - 0.25) * 510).astype(np.uint8) for x in samples]


def test_batches_for_evaluation(floats):
    source = sources.open_source(f"folder:{floats}")
    (found,) = pipeline.eval_batches(
        source, batch_size=16, resize=40, crop=40, rules=rules.of("0.25,0.75")
    )
    for image, expected in zip(found.images, scaled(floats), strict=True):
        np.testing.assert_array_equal(image[..., 0], expected[:, 4:44])
    (found,) = pipeline.eval_batches(source, batch_size=16, resize=40, crop=40)
    assert len(found.skipped) == 16


def test_batches_of_labelled_views(floats):
    source = sources.open_source(f"folder:{floats}")
    told = {"size": 16, "seed": 0, "batch_size": 8, "start": 0, "stop": 1}
    (found,) = labelled.train_batches(source, **told, rules=rules.of("0.25,0.75"))
    assert found.images.std() > 20 and not len(found.skipped)


def test_photographs_with_maps(floats, tmp_path):
    for path in floats.rglob("*.tif"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        ids = np.zeros((40, 48), np.uint8)
        Image.fromarray(ids).save(
            tmp_path / path.relative_to(floats).with_suffix(".png")
        )
    spec, told = f"pairs:{floats},{tmp_path}", rules.of("0.25,0.75")
    found = dense.open_labels(spec, classes=1, rules=told)
    for pair, expected in zip(found, scaled(floats), strict=True):
        np.testing.assert_array_equal(pair.image[..., 0], expected)
    with pytest.raises(ValueError, match=r"00.tif .* set data\.range=LOW,HIGH"):
        dense.open_labels(spec, classes=1)[0]


def test_batches_for_training(floats, tmp_path):
    config = tiny.config(
        data__train=f"folder:{floats}", data__range="0.25,0.75", train__steps=1
    )
    source = sources.open_source(config.data.train)
    mesh = sharding.make_mesh(1)
    (tmp_path / "pictures").mkdir()
    batches = feeding.batches(config, 4, mesh, tmp_path, source, 0)
    found, lost, _ = next(batches)
    assert lost == 0
    # Noise over the whole range, but for the means that resizing takes.
    assert np.asarray(found.global_crops).std() > 20
    batches.close()


def test_embed_and_evaluate(floats, weights, tmp_path):
    spec, backbone = f"folder:{floats}", frozen.load(str(weights))
    with pytest.raises(ValueError, match=r"data\.range=LOW,HIGH"):
        dinov2_jax.embed(weights, spec, tmp_path / "none", shard_size=16, **SIZE)
    out, rows = {}, {}
    for span in ("0.25,0.75", "0,2"):
        found, index, about = dinov2_jax.embed(
            weights, spec, tmp_path / span, shard_size=16, range=span, **SIZE
        )
        assert about["range"] == span and all(index["ok"].to_pylist())
        out[span] = np.array(found["cls"])
        told = {k: str(v) for k, v in (SIZE | {"range": span}).items()}
        apply, s = frozen.cls_of(backbone, "float32"), evaluate.settings("knn", told)
        cache = tmp_path / "cache"
        rows[span] = frozen.features(backbone, apply, "cls", spec, cache, s).rows
        np.testing.assert_allclose(rows[span], out[span], rtol=1e-4, atol=1e-4)
    assert np.abs(rows["0,2"] - rows["0.25,0.75"]).max() > 0.01
    with pytest.raises(ValueError, match="range: 0,2 -> 0,3"):
        dinov2_jax.embed(
            weights, spec, tmp_path / "0,2", shard_size=16, range="0,3", **SIZE
        )


def data(*arguments):
    return command.main(["data", *map(str, arguments)])


def test_check_and_pack(floats, tmp_path, capsys):
    spec = f"folder:{floats}"
    assert data("check", spec, "--workers=1") == 1
    assert "16 records, 16 bad (16 no data.range)" in capsys.readouterr().out
    assert data("check", spec, "--workers=1", "--range=0,1") == 0
    options = ("--workers=1", "--range=0.25,0.75", "--longest=24", "--quality=100")
    assert data("pack", spec, tmp_path / "packed", *options) == 0
    packed = sources.open_source(f"arrayrecord:{tmp_path / 'packed'}")
    for i, expected in enumerate(scaled(floats)):
        image = decode.decode(packed[i].image)
        # Means over areas of four, whose noise is half as large.
        assert image.shape == (20, 24, 3)
        assert abs(image.mean() - expected.mean()) < 2


def test_stats_measures_ranges_and_names_the_setting(floats, tmp_path, capsys):
    assert data("stats", f"folder:{floats}", f"--out={tmp_path}") == 0
    out = capsys.readouterr().out
    assert "16 32-bit float gray TIFF: samples 0.25 to 0.75, none declared" in out
    assert "set data.range=0.25,0.75" in out and "0 unreadable" in out
    known = json.loads((tmp_path / "stats.json").read_text())
    (row,) = known["samples"]
    assert (row["low"], row["high"], row["declared"]) == (0.25, 0.75, None)


def measured(spec):
    source = sources.open_source(spec)
    return depths.measured(source, np.arange(len(source)), decode.MAX_PIXELS)


@pytest.mark.parametrize(
    ("bits", "suggestion"), [(10, "0,1023"), (12, "0,4095"), (16, ""), (7, "0,255")]
)
def test_stats_tells_few_bits_in_many(bits, suggestion, tmp_path):
    values = np.full((32, 32), 2**bits - 1, np.uint16)
    values[0] = 0
    for i in range(3):
        (tmp_path / f"{i}.tif").write_bytes(rasters.tiff(values))
    rows = measured(f"folder:{tmp_path}")
    out = "\n".join(depths.lines(rows, "auto"))
    assert not depths.needed(rows)
    assert f"samples 0 to {2**bits - 1}, 0 to 65535 declared" in out
    assert ("set data.range=" in out) == bool(suggestion)
    assert suggestion in out
    assert depths.lines(rows, "0,1")[-1] == "decoded by data.range=0,1"


def test_a_run_over_few_bits_in_many_says_so(tmp_path, capfd):
    root = tmp_path / "images"
    root.mkdir()
    for i, values in enumerate(np.full((2, 32, 32), 4095, np.uint16)):
        (root / f"{i}.tif").write_bytes(rasters.tiff(values))
    spec = f"folder:{root}"
    config = tiny.config(data__train=spec)
    train.open_sources(config, tmp_path / "run")
    assert f"{spec}: set data.range=0,4095" in capfd.readouterr().err
    walk.say.cache_clear()
    for options in (["check", spec], ["pack", spec, tmp_path / "out", "--longest=16"]):
        assert data(*options, "--workers=1") == 0
        assert f"{spec}: set data.range=0,4095" in capfd.readouterr().err
        walk.say.cache_clear()
    train.open_sources(tiny.config(data__train="demo:train"), tmp_path / "run")
    config.data.range = "0,4095"
    train.open_sources(config, tmp_path / "run")
    assert capfd.readouterr().err == ""


def test_each_source_of_a_mixture_must_decode(floats, tmp_path):
    config = tiny.config(data__train=f"demo:train;folder:{floats}")
    with pytest.raises(ValueError, match=r"data\.range=LOW,HIGH"):
        train.open_sources(config, tmp_path / "run")


def test_stats_tells_sources_apart(floats, tmp_path):
    values = np.full((32, 32), 4095, np.uint16)
    (tmp_path / "0.tif").write_bytes(rasters.tiff(values))
    rows = measured(f"folder:{floats};folder:{tmp_path}")
    out = "\n".join(depths.lines(rows, "auto"))
    assert "source 1: 16 32-bit float" in out and "source 2: 1 16-bit gray" in out
    assert "different ranges (0,4095 and 0.25,0.75)" in out


def test_corrupt_jpegs_are_listed_and_skipped_where_asked_for(
    corrupt, tmp_path, capsys
):
    spec = f"folder:{corrupt}"
    assert data("check", spec, "--workers=1") == 1
    out = capsys.readouterr().out
    assert "7.jpg" in out and "8 records, 1 bad (1 damaged)" in out
    assert data("check", spec, "--workers=1", "--damaged=fill") == 0
    pack = ("--workers=1", "--max-skipped=1")
    assert data("pack", spec, tmp_path / "all", *pack) == 0
    assert data("pack", spec, tmp_path / "sound", *pack, "--damaged=skip") == 0
    assert "1 of 8 records skipped (1 damaged)" in capsys.readouterr().out
    source = sources.open_source(spec)
    told = {"batch_size": 8, "resize": 32, "crop": 32}
    for damaged, lost in (("fill", []), ("skip", [7])):
        (found,) = pipeline.eval_batches(
            source, **told, rules=rules.of(damaged=damaged)
        )
        assert found.skipped.tolist() == lost
