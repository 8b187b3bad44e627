"""Fingerprints of data: another one for every change, the same for the same data."""

import os
import pathlib
import shutil
import types

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import recordfiles
from PIL import Image

from dinov2_jax.cli import evaluate_retrieval
from dinov2_jax.data import dense, fingerprint, sources, video
from dinov2_jax.data.record import Record


def save(path: pathlib.Path, value: int) -> pathlib.Path:
    """A picture of one gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


def touched(path: pathlib.Path) -> None:
    """The same bytes, but written a second later."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


@pytest.fixture
def images(tmp_path):
    """Two classes of three pictures."""
    root = tmp_path / "images"
    for i in range(6):
        save(root / f"class{i % 2}" / f"{i}.bmp", i)
    return root


def of(spec: str) -> str:
    """The fingerprint of a spec, opened anew."""
    return fingerprint.of(sources.open_source(spec))


def test_a_picture_that_moves_to_another_class_is_other_data(images):
    before = of(f"folder:{images}")
    assert of(f"folder:{images}") == before
    (images / "class0/4.bmp").rename(images / "class1/4.bmp")
    assert of(f"folder:{images}") != before
    (images / "class1/4.bmp").rename(images / "class0/4.bmp")
    assert of(f"folder:{images}") == before


def test_any_one_of_many_pictures_counts(images):
    before = of(f"folder:{images}")
    for path in images.rglob("*.bmp"):
        save(path, 99)
        touched(path)  # of the same size
        after = of(f"folder:{images}")
        assert after != before
        before = after


def test_a_folder_that_was_moved_whole_is_the_same_data(images, tmp_path):
    before = of(f"folder:{images}")
    shutil.copytree(images, tmp_path / "copy", copy_function=shutil.copy2)
    assert of(f"folder:{tmp_path / 'copy'}") == before


def test_shards_count_by_name_size_and_time(images, tmp_path):
    shards = {
        "tar": tmp_path / "a.tar",
        "parquet": tmp_path / "a.parquet",
        "arrayrecord": tmp_path / "a.arrayrecord",
    }
    pictures = [p.read_bytes() for p in sorted(images.rglob("*.bmp"))]
    shutil.make_archive(str(tmp_path / "a"), "tar", images)
    table = pyarrow.table({"image": pictures, "label": list(range(6))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    recordfiles.write(tmp_path / "a.arrayrecord", pictures)
    for kind, path in shards.items():
        before = of(f"{kind}:{path}")
        assert of(f"{kind}:{path}") == before
        touched(path)
        assert of(f"{kind}:{path}") != before, kind


def test_parts_of_sources_are_told_apart(images):
    folder = sources.open_source(f"folder:{images}")
    both = [f"folder:{images};demo:val", f"folder:{images}@2;demo:val"]
    some = [sources.Subset(folder, np.array(ids)) for ids in ([0, 1], [1, 0], [0, 2])]
    listed = [
        evaluate_retrieval.Listed(folder, (0, 1), boxes)
        for boxes in ((), ((0, 0, 4, 4),) * 2)
    ]
    every = [folder, *map(sources.open_source, both), *some, *listed]
    every += [sources.open_source(f"demo:{x}") for x in ("train", "val")]
    assert len({fingerprint.of(x) for x in every}) == len(every)
    before = [fingerprint.of(x) for x in every]
    touched(images / "class0/0.bmp")
    assert [a == fingerprint.of(b) for a, b in zip(before, every)] == [
        *[False] * (len(every) - 2),
        True,
        True,
    ]


def test_maps_count_as_photographs_do(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", i)
        labels = Image.fromarray(np.full((8, 8), i % 2, np.uint8))
        (tmp_path / "maps").mkdir(exist_ok=True)
        labels.save(tmp_path / "maps" / f"{i}.png")
    spec = f"pairs:{tmp_path / 'images'},{tmp_path / 'maps'}"

    def opened():
        return fingerprint.of(dense.open_labels(spec, classes=2))

    before = opened()
    assert opened() == before
    moved = [tmp_path / "moved" / part for part in ("images", "maps")]
    for folder in moved:
        shutil.copytree(tmp_path / folder.name, folder, copy_function=shutil.copy2)
    there = dense.open_labels(f"pairs:{moved[0]},{moved[1]}", classes=2)
    assert fingerprint.of(there) == before
    touched(tmp_path / "maps/1.png")
    after = opened()
    assert after != before
    (tmp_path / "maps/classes.txt").write_text("a\nb\n")
    named = opened()
    assert named != after
    (tmp_path / "maps/classes.txt").write_text("b\na\n")
    assert opened() != named


def test_every_frame_of_a_clip_counts(tmp_path):
    for i in range(8):
        save(tmp_path / "run" / "clip" / f"frame{i}.png", i)
    before = fingerprint.of(video.Frames(str(tmp_path), 2))
    assert fingerprint.of(video.Frames(str(tmp_path), 2)) == before
    assert fingerprint.of(video.Frames(str(tmp_path), 4)) != before
    touched(tmp_path / "run/clip/frame5.png")
    assert fingerprint.of(video.Frames(str(tmp_path), 2)) != before


class InMemory:
    """Pictures that lie in no file."""

    classes = ("a", "b")

    def __init__(self, labels, pixels):
        self.labels, self.pixels = labels, pixels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Record(self.pixels[index], self.labels[index])

    def name(self, index):
        return str(index)


def test_what_lies_in_memory_counts_by_every_byte():
    pixels = np.zeros((50, 4, 4, 3), np.uint8)
    before = fingerprint.of(InMemory([0] * 50, pixels))
    assert fingerprint.of(InMemory([0] * 50, pixels.copy())) == before
    assert fingerprint.of(InMemory([0] * 49 + [1], pixels)) != before
    pixels[37, 3, 3, 2] = 1
    assert fingerprint.of(InMemory([0] * 50, pixels)) != before


def test_a_file_of_labels_counts_by_its_bytes(tmp_path):
    path = tmp_path / "real.json"
    path.write_text("[[1]]")
    before = fingerprint.of(path)
    touched(path)
    assert fingerprint.of(path) == before
    path.write_text("[[2]]")
    assert fingerprint.of(path) != before


def test_neighbouring_parts_do_not_run_into_each_other():
    def source(*parts):
        return types.SimpleNamespace(identity=lambda: iter(parts))

    assert fingerprint.of(source(b"ab", b"c")) != fingerprint.of(source(b"a", b"bc"))
