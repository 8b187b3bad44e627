"""Shards, patterns and columns that cannot be used: one line, and nothing left."""

import gzip

import pytest
import tars
import test_bad_input
import test_parquet
import test_records

config = test_bad_input.config
places = test_bad_input.places
refusal = test_bad_input.refusal

JPEGS = [tars.jpeg(20 * i) for i in range(4)]
TAR = tars.packed([("a/0.jpg", JPEGS[0]), ("a/1.jpg", JPEGS[1])])


@pytest.fixture
def shards(tmp_path):
    """A folder of shards of all kinds, sound and broken."""
    root = tmp_path / "shards"
    root.mkdir()
    tar_files = {
        "000": TAR,
        "cut": TAR[:2100],
        "empty": b"",
        "page": b"<!doctype html><html>",
        "zipped": gzip.compress(TAR),
        "noise": b"\xff" * 5000,
        "label": tars.packed([("0.jpg", JPEGS[0]), ("0.cls", b"cat")]),
    }
    for name, data in tar_files.items():
        (root / f"{name}.tar").write_bytes(data)
    columns = {"image": JPEGS[:2], "label": [0, 1]}
    names = {"label": ["cat", "dog"]}
    for split in ("train", "test"):
        test_parquet.write(root / f"hf/{split}-00000.parquet", columns, names)
    test_parquet.write(root / "bare.parquet", columns)
    beyond = columns | {"label": [0, 5]}
    test_parquet.write(root / "beyond.parquet", beyond, names)
    (root / "page.parquet").write_bytes(b"<!doctype html><html>")
    folder = test_records.packed(root / "packed", test_records.labelled(0, 1))
    next(folder.glob("*.arrayrecord")).unlink()
    return root


CASES = {
    "a tar file that is cut short": (
        "tar:{root}/cut.tar",
        ["cut.tar is cut short: a/1.jpg", "copy or pack 1 of 1 shards again"],
    ),
    "a tar file of no bytes": ("tar:{root}/empty.tar", ["empty.tar", "it is empty"]),
    "a web page for a tar file": ("tar:{root}/page.tar", ["it is an HTML page"]),
    "a compressed tar file": ("tar:{root}/zipped.tar", ["gzip-compressed; unpack it"]),
    "noise for a tar file": ("tar:{root}/noise.tar", ["has no valid header"]),
    "a label that is a word": ("tar:{root}/label.tar", ["0.cls", "'cat'", "number"]),
    "shards that are missing": (
        "tar:{root}/{{000..011}}.tar",
        ["001.tar is missing", "and 8 more", "11 of the 12 files"],
    ),
    "a list without an end": ("tar:{root}/{{0..99999999}}.tar", ["1,000,000 files"]),
    "folders for shards": (
        "tar:{root}/hf*",
        ["matches folders only", "the files in them"],
    ),
    "a folder of no shards": ("arrayrecord:{root}/hf", ["manifest.json"]),
    "two splits in a folder": (
        "parquet:{root}/hf",
        ["several splits, test, train", "parquet:{root}/hf/test* (files: 1)"],
    ),
    "a web page for a Parquet file": ("parquet:{root}/page.parquet", ["HTML page"]),
    "a label beyond the names": (
        "parquet:{root}/beyond.parquet",
        ["label 5 in 'label'", "has names for 0 to 1: cat, dog"],
    ),
    "names in some Parquet files": (
        "parquet:{root}/bare.parquet::{root}/hf/train*",
        ["bare.parquet has no names", "cat, dog"],
    ),
    "no such column of images": (
        "parquet:{root}/bare.parquet?image=photo",
        ["no column 'photo'", "image (struct"],
    ),
    "no such column of labels": (
        "parquet:{root}/bare.parquet?label=kind",
        ["no column 'kind'", "label (int64)"],
    ),
    "a query that is unknown": (
        "parquet:{root}/bare.parquet?labels=kind",
        ["matches no file", "?labels=kind is unknown", "?image=COLUMN&label=COLUMN"],
    ),
    "a packed shard that is missing": ("arrayrecord:{root}/packed", ["is missing"]),
}
"""What is wrong -> (spec, words of the line)."""


@pytest.mark.parametrize("wrong", CASES)
def test_wrong_shards_are_one_line(wrong, config, refusal, shards):
    spec, words = CASES[wrong]
    line = refusal(config(), f"--config.data.train={spec.format(root=shards)}")
    for word in words:
        assert word.format(root=shards) in line
