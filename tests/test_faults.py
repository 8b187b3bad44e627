"""Storage that fails: counted, named, bounded, or one clear error."""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import pickle
import tarfile
import threading
import time

import fsspec
import numpy as np
import peers
import pyarrow
import pytest
import recordfiles
from PIL import Image
from pyarrow import parquet

from dinov2_jax.data import draws, pipeline, reading, sources

CROP = draws.MultiCrop(global_size=16, local_size=8, local_number=1)


def jpeg(value):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 24), (value, 9, 7)).save(buffer, "JPEG")
    return buffer.getvalue()


IMAGES = [jpeg(10 * i) for i in range(12)]
BROKEN = {3: b"broken", 7: IMAGES[7][:200]}
DAMAGED = [BROKEN.get(i, image) for i, image in enumerate(IMAGES)]


def as_folder(path, images):
    path.mkdir()
    for i, image in enumerate(images):
        (path / f"{i:02}.jpg").write_bytes(image)
    return f"folder:{path}"


def as_tar(path, images):
    with tarfile.open(path, "w") as out:
        for i, image in enumerate(images):
            info = tarfile.TarInfo(f"{i:02}.jpg")
            info.size = len(image)
            out.addfile(info, io.BytesIO(image))
    return f"tar:{path}"


def as_array_records(path, images):
    return f"arrayrecord:{recordfiles.write(path, images)}"


def as_parquet(path, images, **more):
    table = pyarrow.table({"image": [{"bytes": x, "path": None} for x in images]})
    parquet.write_table(table, path, row_group_size=5, **more)
    return f"parquet:{path}"


KINDS = [as_folder, as_tar, as_array_records, as_parquet]


def trained(source, steps=6, **settings):
    """The batches of some steps of four images."""
    made = pipeline.train_batches(
        source,
        multicrop=CROP,
        patch_size=8,
        mask_probability=0.5,
        mask_ratio=(0.1, 0.5),
        seed=0,
        batch_size=4,
        group_size=2,
        start=0,
        stop=steps,
        **settings,
    )
    with contextlib.closing(made):
        return list(made)


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_records_of_every_format_are_replaced_and_named(kind, tmp_path):
    source = sources.open_source(kind(tmp_path / "data", DAMAGED))
    made = trained(source)
    skipped = set(np.concatenate([step.skipped for step in made]).tolist())
    assert skipped == set(BROKEN)
    assert all("data" in source.name(index) for index in skipped)
    assert not sum(step.retries for step in made)  # bytes that are wrong stay wrong


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_vanishes_during_a_run_costs_its_records_alone(kind, tmp_path):
    source = sources.open_source(
        ";".join(kind(tmp_path / name, IMAGES) for name in ("here", "gone"))
    )
    gone = tmp_path / "gone"
    if gone.is_dir():
        for image in list(gone.iterdir())[:6]:
            image.unlink()
    else:
        gone.unlink()
    made = trained(source)
    names = {source.name(i) for step in made for i in step.skipped}
    assert names and all("gone" in name for name in names)
    assert all(step.batch.global_crops.any() for step in made)


@pytest.mark.parametrize("damage", [slice(0, 300), slice(0, 0)], ids=["cut", "empty"])
def test_a_tar_file_that_is_cut_during_a_run_is_named(damage, tmp_path):
    spec = as_tar(tmp_path / "data", IMAGES)
    source = sources.open_source(spec)
    whole = (tmp_path / "data").read_bytes()
    with open(tmp_path / "data", "r+b") as file:
        file.truncate(len(whole[damage]))
    with pytest.raises(OSError, match="data ends within .*05.jpg"):
        source[5]
    with pytest.raises(ValueError, match="100 records in a row"):
        trained(source, attempts=1)


class Flaky:
    """A source whose reads fail `times` times in a row, each after `delay` seconds."""

    classes = ()

    def __init__(self, times, error, delay=0.0):
        self.times, self.error, self.delay, self.seen = times, error, delay, {}

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        self.seen[index] = self.seen.get(index, 0) + 1
        time.sleep(self.delay)
        if self.seen[index] % (self.times + 1):
            raise self.error
        return sources.Record(IMAGES[index], -1)

    def name(self, index):
        return f"record {index}"


@pytest.mark.parametrize("error", [OSError("reset"), TimeoutError("slow")])
def test_errors_that_pass_are_tried_again_and_counted(error, monkeypatch):
    pauses = []
    monkeypatch.setattr(reading.time, "sleep", pauses.append)
    made = trained(Flaky(2, error), steps=3, threads=0)
    assert [step.retries for step in made] == [8, 8, 8]
    assert not any(len(step.skipped) for step in made)
    waits = [pause for pause in pauses if pause]
    assert waits == [0.1, 0.2] * 12


def test_errors_that_last_end_as_skipped_records(monkeypatch):
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: None)
    source = Flaky(10**6, OSError("gone for good"))
    with pytest.raises(ValueError, match=r"gone for good \(given up after 3 attempts"):
        trained(source)
    assert reading.Reader(source, attempts=20, wait=1.0)
    pauses = []
    monkeypatch.setattr(reading.time, "sleep", pauses.append)
    with pytest.raises(reading.Unreadable) as caught:
        reading.Reader(source, attempts=6, wait=1.0).record(0)
    assert [p for p in pauses if p] == [1.0, 2.0, 4.0, 5.0, 5.0]  # bounded
    assert caught.value.retries == 5


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x")])
def test_errors_that_cannot_pass_are_not_tried_again(error):
    source = Flaky(10**6, error)
    with pytest.raises(type(error)):
        reading.Reader(source).record(4)
    assert source.seen == {4: 1}


def test_a_slow_source_changes_no_batch():
    slow = trained(Flaky(0, None, delay=0.01), threads=4)
    quick = trained(Flaky(0, None), threads=0)
    for a, b in zip(slow, quick, strict=True):
        np.testing.assert_array_equal(a.batch.global_crops, b.batch.global_crops)


@pytest.mark.parametrize("kind", [as_tar, as_parquet])
def test_files_behind_a_url_are_those_on_the_disk(kind, tmp_path):
    spec = kind(tmp_path / "data", IMAGES)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/data", (tmp_path / "data").read_bytes())
    scheme = spec.partition(":")[0]
    try:
        near = sources.open_source(spec)
        far = sources.open_source(f"{scheme}:memory://bucket/da*", cache_dir=tmp_path)
        assert len(near) == len(far) == len(IMAGES)
        assert [far[i] for i in range(12)] == [near[i] for i in range(12)]
        memory.rm("/bucket/data")
        with pytest.raises(ValueError, match="matches no file"):
            sources.open_source(f"{scheme}:memory://bucket/da*", cache_dir=tmp_path)
    finally:
        memory.store.clear()


@pytest.fixture
def s3(monkeypatch):
    """URL of an empty bucket on a server of S3's protocol."""
    peers.package("s3fs", "remote")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    fsspec.filesystem("s3", skip_instance_cache=True).makedirs("bucket", exist_ok=True)
    yield "s3://bucket"
    server.stop()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def gs(monkeypatch):
    """URL of an empty bucket on a server of Google Cloud Storage's protocol."""
    # Read when gcsfs is imported; the server has no gRPC, which it would try first.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    peers.package("gcsfs", "remote")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    storage = emulator.Storage(use_memory_fs=True)
    emulator.buckets.create_bucket("bucket", storage)
    # Not the emulator's own server, which answers one connection at a time.
    handler = functools.partial(emulator.RequestHandler, storage)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", place)
    monkeypatch.setenv("FSSPEC_GS", '{"token": "anon"}')  # of worker processes
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    yield "gs://bucket"
    server.shutdown()
    server.server_close()
    fsspec.filesystem("gs").clear_instance_cache()


@pytest.mark.torch
@pytest.mark.parametrize("bucket", ["s3", "gs"])
@pytest.mark.parametrize("kind", [as_tar, as_parquet])
def test_a_run_reads_object_storage_as_it_reads_the_disk(
    kind, bucket, tmp_path, request
):
    url = request.getfixturevalue(bucket)

    def put(name, data):
        fsspec.filesystem(bucket).pipe(f"{url}/{name}", data)

    for name, images in (("data-0", IMAGES[:7]), ("data-1", DAMAGED[7:])):
        spec = kind(tmp_path / name, images)
        put(name, (tmp_path / name).read_bytes())
    scheme = spec.partition(":")[0]
    near = sources.open_source(f"{scheme}:{tmp_path}/data-{{0..1}}")
    far = sources.open_source(f"{scheme}:{url}/data-{{0..1}}", cache_dir=tmp_path)
    assert [far[i] for i in range(12)] == [near[i] for i in range(12)]
    here = trained(near, steps=3)
    there = trained(far, steps=3, workers=int(kind is as_tar))
    for a, b in zip(there, here, strict=True):
        np.testing.assert_array_equal(a.batch.global_crops, b.batch.global_crops)
        np.testing.assert_array_equal(a.skipped, b.skipped)
    put("data-0", b"cut")
    lost = trained(pickle.loads(pickle.dumps(far)), steps=3)  # with nothing kept
    names = {far.name(i) for step in lost for i in step.skipped}
    assert any(f"{url}/data-0" in name for name in names)


@pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed"
)
def test_a_url_whose_package_is_missing_names_the_extra():
    with pytest.raises(ValueError, match=r"dinov2_jax\[remote\]"):
        sources.open_source("tar:gs://bucket/x.tar")


def packed(folder):
    """A folder as `data pack` leaves it, with two shards."""
    folder.mkdir()
    shards = []
    for number, part in enumerate((IMAGES[:7], IMAGES[7:])):
        file = folder / f"data-{number:05}-of-00002.arrayrecord"
        as_array_records(file, part)
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        shards.append(
            {
                "file": file.name,
                "records": len(part),
                "bytes": len(data),
                "sha256": digest,
            }
        )
    return {
        "format": 1,
        "records": len(IMAGES),
        "classes": ["cat", "dog"],
        "labelled": False,
        "source": "folder:/images",
        "shards": shards,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["shards"].pop(), "12 records, but its shards hold 7"),
        (lambda m: m["shards"][1].update(file="x"), "/x is missing, .* 1 of 2 shards"),
        (lambda m: m["shards"][1].update(file="../x"), "'../x', which is no file"),
        (lambda m: m["shards"][1].update(bytes=3), "bytes, but .* says 3"),
        (lambda m: (m["shards"][1].update(records=6), m.update(records=13)), "says 6"),
        (lambda m: m.update(format=2), "format 2 is not 1"),
        (lambda m: m.pop("classes"), "classes"),
    ],
)
def test_a_manifest_that_does_not_match_is_refused(change, words, tmp_path):
    folder = tmp_path / "packed"
    known = packed(folder)
    (folder / "manifest.json").write_text(json.dumps(known))
    source = sources.open_source(f"arrayrecord:{folder}")
    assert len(source) == 12 and source.classes == ("cat", "dog")
    change(known)
    (folder / "manifest.json").write_text(json.dumps(known))
    with pytest.raises(ValueError, match=words):
        sources.open_source(f"arrayrecord:{folder}")
