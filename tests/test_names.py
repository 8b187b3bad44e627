"""Commands on files whose names are no text, under a locale that is not UTF-8."""

import io
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import peers
import pytest
import tiny
from PIL import Image

import dinov2_jax
from dinov2_jax import config as settings
from dinov2_jax import shards
from dinov2_jax.cli import workdir as workdirs
from dinov2_jax.convert import export, names
from dinov2_jax.data import sources
from dinov2_jax.escaping import unescaped

CLASSES = (r"caf\xe9\n", "dog", "été")
BAD = (rb"b" + b"\xff\n\t\x1b[31m.png", b"b\xff.png")
ASCII = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes in a folder whose own name is no text; two files are no images."""
    root = os.fsencode(tmp_path_factory.mktemp("names")) + b"/d\xe9p\xf4t"
    rng = np.random.default_rng(0)

    def put(name: bytes, data: bytes | None = None) -> None:
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if data is None:
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(
                file, "PNG"
            )
            data = file.getvalue()
        with open(path, "wb") as file:
            file.write(data)

    for i in range(4):
        put(b"caf\xe9\n/%d\xff.png" % i)
        put(b"dog/%d.png" % i)
        # As macOS spells it: letters and accents apart.
        put("e\u0301te\u0301/%d.png".encode() % i)
    put(b"caf\xe9\n/" + BAD[0], b"no image")
    put(b"dog/" + BAD[1], b"no image")
    put(b"dog/._0.png")
    put(b"dog/0.heic")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow backbone as a file."""
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export.write_safetensors(path, state, export.about(built))
    return path


def run(*arguments, code: int = 0) -> subprocess.CompletedProcess:
    """A command in a process of its own, whose locale is ASCII."""
    done = subprocess.run(
        [sys.executable, "-m", "dinov2_jax", *arguments],
        capture_output=True,
        env=os.environ | ASCII | {"XLA_FLAGS": ""},
        check=False,
    )
    assert done.returncode == code, done.stderr.decode(errors="replace")
    line = b"14 images; ignored 1 of 15 files: 1 .heic; hidden or service entries: 1"
    assert done.stderr.count(line) == 1
    return done


def no_names_are_left(text: bytes) -> None:
    """Holds that a file is UTF-8, without what a name could do to a line."""
    text.decode("utf-8")
    assert b"\x1b" not in text and b"\t\x1b" not in text


def both(lines: list[str], root: bytes) -> None:
    """Holds that two lines end in the names of the two files that are no images."""
    found = [unescaped(line).encode("utf-8", "surrogateescape") for line in lines]
    assert found == [root + b"/caf\xe9\n/" + BAD[0], root + b"/dog/" + BAD[1]]


def test_data_check_and_pack_write_names_that_can_be_read_back(images, tmp_path):
    spec = b"folder:" + images
    run("data", "check", spec, "--workers=1", f"--out={tmp_path}/bad.txt", code=1)
    text = (tmp_path / "bad.txt").read_bytes()
    no_names_are_left(text)
    lines = text.decode().splitlines()
    both([line.split("\t")[1].partition(": ")[0] for line in lines], images)
    packed = tmp_path / "packed"
    run("data", "pack", spec, packed, "--workers=1", "--max-skipped=0.5")
    no_names_are_left((packed / "skipped.txt").read_bytes())
    source = sources.open_source(f"arrayrecord:{packed}")
    assert source.classes == CLASSES and len(source) == 12
    folder = sources.open_source(os.fsdecode(spec))
    assert folder.classes == CLASSES
    good = [i for i in range(14) if folder[i].image != b"no image"]
    assert [source[i] for i in range(12)] == [folder[i] for i in good]


def test_embed_and_evaluate_write_names_that_can_be_read_back(
    images, weights, tmp_path
):
    spec, out = b"folder:" + images, tmp_path / "features"
    sizes = ["--resize=32", "--crop=32", "--batch-size=8", "--shard-size=8"]
    run("embed", f"--weights={weights}", b"--data=" + spec, f"--out={out}", *sizes)
    _, index, _ = dinov2_jax.open_features(out)
    rows = index.to_pylist()
    assert [row["ok"] for row in rows].count(False) == 2
    both([row["name"] for row in rows if not row["ok"]], images)
    for row in rows:
        assert os.path.isfile(unescaped(row["name"]))
    both((out / "skipped.txt").read_text(encoding="utf-8").splitlines(), images)
    task = ["evaluate", "knn", f"--weights={weights}", f"--out={tmp_path}/knn"]
    more = [b"--train=" + spec, b"--val=" + spec, "--set", "resize=32"]
    run(*task, *more, "--set", "crop=32", "--set", "batch_size=8")
    page = (tmp_path / "knn/report.html").read_bytes()
    no_names_are_left(page)
    assert "été" in page.decode() and r"caf\xe9\n" in page.decode()
    assert r"d\xe9p\xf4t" in page.decode()
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_passes_files_whose_names_are_no_text(images, tmp_path):
    changed = [
        f"--config.{name}={value}"
        for name, value in settings.fields(tiny.config())
        if dict(settings.fields(settings.default()))[name] != value
    ]
    config = pathlib.Path(__file__).parents[1] / "configs/vitl16_in1k_short.py"
    spec, workdir = b"folder:" + images, tmp_path / "run"
    command = ["train", f"--config={config}", f"--workdir={workdir}", *changed]
    command += [b"--config.data.train=" + spec, b"--config.data.val=" + spec]
    command += ["--config.mesh.remat=none", "--config.data.max_skipped=1.0"]
    command += ["--config.train.batch_size=8"]
    run(*command, "--config.train.steps=2", "--config.eval.every=2")
    text = (workdir / "skipped.txt").read_bytes()
    no_names_are_left(text)
    both(sorted(text.decode().splitlines()), images)
    page = (workdir / "report.html").read_bytes()
    no_names_are_left(page)
    assert b'charset="utf-8"' in page
    # A later start names each file once.
    source = sources.open_source(os.fsdecode(spec))
    bad = [i for i in range(len(source)) if source[i].image == b"no image"]
    assert workdirs.SkippedRecords(workdir, source).add(np.array(bad)) == 2
    assert (workdir / "skipped.txt").read_bytes() == text


def test_what_opens_only_utf8_says_so_before_any_work(images, tmp_path):
    out = os.fsencode(tmp_path) + b"/p\xe9"
    for arguments in (
        ["data", "pack", b"folder:" + images, out],
        ["data", "check", b"arrayrecord:" + out + b"/x.arrayrecord"],
        ["data", "check", b"parquet:" + out + b"/x.parquet"],
    ):
        if arguments[1] == "check":
            os.makedirs(out, exist_ok=True)
            pathlib.Path(os.fsdecode(arguments[2].partition(b":")[2])).touch()
        done = subprocess.run(
            [sys.executable, "-m", "dinov2_jax", *arguments],
            capture_output=True,
            env=os.environ | ASCII,
            check=False,
        )
        (line,) = done.stderr.decode().splitlines()
        assert done.returncode == 1 and r"p\xe9" in line and "is not UTF-8" in line
        assert done.stdout == b""


def test_features_and_packed_records_lie_in_folders_of_any_name(images, tmp_path):
    """What is no ASCII under an ASCII locale, and no text at all where that can be."""
    spec = b"folder:" + images
    packed = os.fsencode(tmp_path) + "/été".encode()
    run("data", "pack", spec, packed, "--workers=1", "--max-skipped=0.5")
    done = subprocess.run(
        [sys.executable, "-m", "dinov2_jax", "data", "check", packed, "--workers=1"],
        capture_output=True,
        env=os.environ | ASCII,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"12 records, 0 bad" in done.stdout
    folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xe9"))
    shards.claim(folder, {"records": 2, "shard_size": 2, "what": ["cls"]})
    writer = shards.Writer(folder, 0, 2)
    about = {"record": np.arange(2), "name": ["a", "b"], "ok": np.ones(2, bool)}
    writer.add({"cls": np.ones((2, 3), np.float32)}, about)
    writer.close()
    kinds, index, _ = dinov2_jax.open_features(folder)
    assert kinds["cls"].shape == (2, 3) and index["name"].to_pylist() == ["a", "b"]


def test_members_of_a_tar_keep_their_names_under_any_locale(images, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(os.fsdecode(images), ".")
        tar.add(os.fsdecode(images + b"/dog/0.png"), "été/0.png")
        tar.add(os.fsdecode(images + b"/dog/1.png"), "été/0.png")
    spec, kept = f"tar:{tmp_path}/x.tar", tmp_path / "bad.txt"
    for environment in ({}, ASCII):
        done = subprocess.run(
            [sys.executable, "-m", "dinov2_jax", "data", "check", spec, "--workers=1"]
            + [f"--out={kept}"],
            capture_output=True,
            env=os.environ | environment,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        lines = kept.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"{tmp_path}/x.tar/été/0.png occurs again later")
        places = [line.split("\t")[1].partition(": ")[0] for line in lines[1:]]
        both([x.removeprefix(f"{tmp_path}/x.tar") for x in places], b"")
    assert sources.open_source(spec).classes == CLASSES
