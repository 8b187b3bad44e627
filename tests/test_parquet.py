"""Parquet files as people have them: other orders, names, types, folders, damage."""

import json
import pathlib
import pickle

import numpy as np
import pyarrow
import pytest
import tars
from pyarrow import parquet

from dinov2_jax import __main__ as command
from dinov2_jax.data import sources, walk

JPEGS = [tars.jpeg(20 * i) for i in range(12)]


@pytest.fixture(autouse=True)
def _said_anew():
    """Lines are said once a process; each test is one of its own."""
    walk.say.cache_clear()


def write(path, columns, names=None, groups=None, **options):
    """A file of columns; names: {column: names of its numbers}."""
    columns = {
        key: [{"bytes": x, "path": None} for x in value] if key == "image" else value
        for key, value in columns.items()
    }
    table = pyarrow.table(columns)
    if names:
        features = {k: {"names": v, "_type": "ClassLabel"} for k, v in names.items()}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=groups, **options)
    return path


def listed(source):
    """[(image, name of its class or None)]"""
    source = pickle.loads(pickle.dumps(source))
    records = [source[index] for index in range(len(source))]
    return [
        (JPEGS.index(record.image), source.classes[record.label])
        if record.label >= 0
        else (JPEGS.index(record.image), None)
        for record in records
    ]


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}])
def test_names_in_another_order_give_each_image_its_own_name(tmp_path, options):
    for i, names in enumerate([["cat", "dog"], ["dog", "cat"], ["eel", "cat"]]):
        columns = {"image": JPEGS[2 * i : 2 * i + 2], "label": [0, 1]}
        write(tmp_path / f"{i}.parquet", columns, {"label": names}, **options)
    source = sources.open_source(f"parquet:{tmp_path}/*.parquet")
    assert listed(source) == list(enumerate(["cat", "dog", "dog", "cat", "eel", "cat"]))
    assert source.classes == ("cat", "dog", "eel")


def test_texts_are_classes_in_the_order_of_their_names_over_all_files(tmp_path):
    write(tmp_path / "a.parquet", {"image": JPEGS[:3], "label": ["dog", "ant", None]})
    dictionary = pyarrow.array(["cat", "dog", ""]).dictionary_encode()
    write(tmp_path / "b.parquet", {"image": JPEGS[3:6], "label": dictionary})
    source = sources.open_source(f"parquet:{tmp_path}/*.parquet")
    assert source.classes == ("ant", "cat", "dog")
    names = ["dog", "ant", None, "cat", "dog", None]
    assert listed(source) == list(enumerate(names))


def test_one_class_in_two_spellings_of_unicode_is_one(tmp_path):
    labels = ["caf\u00e9", "cafe\u0301"]
    write(tmp_path / "a.parquet", {"image": JPEGS[:2], "label": labels})
    source = sources.open_source(f"parquet:{tmp_path}/a.parquet")
    assert source.classes == ("caf\u00e9",) and source[1].label == 0


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, None, 1],
        [2.0, 0.0, float("nan"), 1.0],
        pyarrow.array([2, 0, None, 1], pyarrow.uint8()),
    ],
)
def test_numbers_without_names_are_classes_and_null_is_no_label(tmp_path, labels):
    write(tmp_path / "a.parquet", {"image": JPEGS[:4], "label": labels})
    source = sources.open_source(f"parquet:{tmp_path}/a.parquet")
    assert source.classes == ("0", "1", "2")
    assert listed(source) == list(enumerate(["2", "0", None, "1"]))


def test_columns_of_other_names_are_found_told_and_named(tmp_path, capsys):
    columns = {
        "mask": [b"mask"] * 2,
        "photo": JPEGS[:2],
        "coarse_label": ["pet", "fish"],
        "fine_label": ["dog", "eel"],
        "id": [1, 2],
    }
    spec = f"parquet:{write(tmp_path / 'x.parquet', columns)}"
    source = sources.open_source(spec)
    assert listed(source) == [(0, "dog"), (1, "eel")]
    said = capsys.readouterr().err
    assert "labels are those of 'fine_label'; others are coarse_label" in said
    assert "images are those of 'photo'; others are mask" in said
    named = sources.open_source(f"{spec}?image=photo&label=coarse_label")
    assert listed(named) == [(0, "pet"), (1, "fish")]
    mixed = sources.open_source(f"{spec}?label=id@3;{spec}?label=@1")
    assert mixed.weights == (3.0, 1.0) and mixed.sources[0].classes == ("0", "1", "2")
    assert listed(mixed.sources[1]) == [(0, None), (1, None)]
    assert sources.open_source(f"{spec}?image=mask")[0].image == b"mask"


def test_labels_of_an_unknown_column_are_asked_for(tmp_path, capsys):
    path = write(tmp_path / "x.parquet", {"image": JPEGS[:2], "kind": ["b", "a"]})
    assert listed(sources.open_source(f"parquet:{path}")) == [(0, None), (1, None)]
    assert "no column of labels is known; others are kind" in capsys.readouterr().err
    assert listed(sources.open_source(f"parquet:{path}?label=kind")) == [
        (0, "b"),
        (1, "a"),
    ]


def test_labels_that_are_lists_are_told_not_to_be_taken(tmp_path, capsys):
    path = write(tmp_path / "x.parquet", {"image": JPEGS[:2], "label": [[0], [1]]})
    assert listed(sources.open_source(f"parquet:{path}")) == [(0, None), (1, None)]
    said = capsys.readouterr().err
    assert "images have no labels: label (list<element: int64>) holds neither" in said


GOOD = {"image": JPEGS[:2], "label": [0, 1]}
NAMES = {"label": ["cat", "dog"]}
REFUSED = {
    "a label beyond the names": (
        ({"image": JPEGS[:2], "label": [0, 2]}, NAMES),
        "label 2 in 'label', but has names for 0 to 1: cat, dog",
    ),
    "a label below 0": (
        ({"image": JPEGS[:2], "label": [0, -7]}, NAMES),
        "has label -7",
    ),
    "other columns": (
        ({"picture": JPEGS[:2], "label": [0, 1]}, NAMES),
        "has no column 'image' of images",
    ),
    "no label": (({"image": JPEGS[:2]}, None), "has no column 'label'"),
    "texts among numbers": (
        ({"image": JPEGS[:2], "label": ["a", "b"]}, None),
        "holds numbers in .*a.parquet, but texts in .*b.parquet",
    ),
    "numbers without names": ((GOOD, None), "has no names for the numbers in 'label'"),
    "a half": (({"image": JPEGS[:2], "label": [0.5, 1]}, NAMES), "0.5 is no integer"),
    "lists": (({"image": JPEGS[:2], "label": [[0], [1]]}, NAMES), "no labels but list"),
}


def test_measures_are_no_labels_unless_they_are_called_so(tmp_path):
    columns = {"image": JPEGS[:2], "target": [0.25, 0.5]}
    path = write(tmp_path / "x.parquet", columns)
    assert listed(sources.open_source(f"parquet:{path}")) == [(0, None), (1, None)]
    with pytest.raises(ValueError, match=r"0\.\d+ is no integer; labels are integers"):
        sources.open_source(f"parquet:{path}?label=target")


@pytest.mark.parametrize("what", REFUSED)
def test_files_that_contradict_each_other_are_refused_by_name(what, tmp_path):
    (columns, names), words = REFUSED[what]
    write(tmp_path / "a.parquet", GOOD, NAMES)
    write(tmp_path / "b.parquet", columns, names)
    with pytest.raises(ValueError, match=words) as caught:
        sources.open_source(f"parquet:{tmp_path}/*.parquet")
    assert "b.parquet" in str(caught.value) and "\n" not in str(caught.value)


def test_a_column_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", GOOD, NAMES)
    for query, words in [("image=img", "no column 'img'"), ("label=x", "column 'x'")]:
        with pytest.raises(ValueError, match=words):
            sources.open_source(f"parquet:{path}?{query}")


def test_empty_row_groups_and_files_count_nothing(tmp_path):
    schema = pyarrow.table({"image": JPEGS[:1], "label": ["x"]}).schema
    with parquet.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for rows in ([], [0, 1], [], [2], []):
            batch = {"image": [JPEGS[i] for i in rows], "label": [f"{i}" for i in rows]}
            writer.write_table(pyarrow.table(batch, schema))
    parquet.write_table(schema.empty_table(), tmp_path / "b.parquet")
    other = pyarrow.schema([("text", pyarrow.string())])
    parquet.write_table(other.empty_table(), tmp_path / "c.parquet")
    source = sources.open_source(f"parquet:{tmp_path}/*.parquet")
    assert listed(source) == [(0, "0"), (1, "1"), (2, "2")]
    assert source.name(2) == f"{tmp_path}/a.parquet row 2"


def test_a_null_image_is_an_unreadable_record(tmp_path, capsys):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = [{"bytes": JPEGS[0], "path": None}, None, {"bytes": None, "path": "x"}]
    table = pyarrow.table({"image": pyarrow.array(images, kind), "label": [0, 1, 1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    line = ["data", "check", f"parquet:{tmp_path}/a.parquet", "--workers=1"]
    assert command.main(line) == 1
    said = capsys.readouterr().out
    assert "a.parquet row 1 holds no bytes" in said and "3 records, 2 bad" in said


def test_files_that_are_no_parquet_are_called_by_their_names(tmp_path):
    good = write(tmp_path / "a.parquet", GOOD, NAMES)
    data = good.read_bytes()
    broken = {"b": data[:-50], "c": b"", "d": b"<!doctype html>"}
    for name, content in broken.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"3 of 4 files") as caught:
        sources.open_source(f"parquet:{tmp_path}/*.parquet")
    said = str(caught.value)
    for words in (
        "b.parquet cannot",
        "cut short",
        "c.parquet",
        "is empty",
        "HTML page",
    ):
        assert words in said


def test_a_damaged_page_is_a_record_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "a.parquet", GOOD, NAMES, 1, compression="snappy")
    data = bytearray(path.read_bytes())
    place = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    source = sources.open_source(f"parquet:{path}")
    assert source[0].label == 0
    with pytest.raises(OSError, match=r"a.parquet row group 1"):
        source[1]


def test_a_folder_is_all_its_files_but_not_two_splits(tmp_path, capsys):
    root = tmp_path / "set"
    for i in range(2):
        columns = {"image": JPEGS[2 * i : 2 * i + 2], "label": [0, 1]}
        write(root / f"data/train-{i:05}-of-00002.parquet", columns, NAMES)
    (root / "README.md").write_text("a data set")
    source = sources.open_source(f"parquet:{root}")
    assert [number for number, _ in listed(source)] == [0, 1, 2, 3]
    assert source.faults == ()
    write(root / "data/test-00000-of-00001.parquet", GOOD, NAMES)
    with pytest.raises(ValueError, match="several splits, test, train") as caught:
        sources.open_source(f"parquet:{root}")
    assert f"parquet:{root}/data/train* (files: 2)" in str(caught.value)
    assert len(sources.open_source(f"parquet:{root}/data/train*")) == 4
    pathlib.Path(root / "data/train-00001-of-00002.parquet").unlink()
    (fault,) = sources.open_source(f"parquet:{root}/data/train*").faults
    assert (
        "1 of 2 numbered files are missing" in fault and "train-00001-of-00002" in fault
    )


def test_a_label_that_the_footer_hides_is_a_bad_record(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", GOOD, NAMES)
    source = sources.open_source(f"parquet:{path}")
    source.classes, source._numbers = ("cat",), [{0: 0}]
    with pytest.raises(OSError, match="row 1 has label 1"):
        source[1]
    assert np.isfinite(source[0].label)
