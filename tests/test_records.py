"""ArrayRecord files and packed folders: cut, foreign, missing, labels of no class."""

import gzip
import hashlib
import json

import pytest
import recordfiles
import tars

from dinov2_jax import __main__ as command
from dinov2_jax.data import arrays, sources

JPEGS = [tars.jpeg(20 * i) for i in range(12)]


def packed(folder, *shards, classes=("cat", "dog")):
    """A folder as `data pack` leaves it, of shards of entries."""
    folder.mkdir()
    rows = []
    for number, entries in enumerate(shards):
        path = folder / f"data-{number:05}-of-{len(shards):05}.arrayrecord"
        recordfiles.write(path, entries)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        about = {"file": path.name, "records": len(entries), "bytes": len(data)}
        rows.append(about | {"sha256": digest})
    known = {"format": 1, "classes": list(classes), "labelled": True, "shards": rows}
    known |= {"records": sum(map(len, shards)), "source": "folder:/images"}
    (folder / "manifest.json").write_text(json.dumps(known))
    return folder


def labelled(*labels):
    return [arrays.labelled_record(JPEGS[i], label) for i, label in enumerate(labels)]


def check(source, capsys, *more):
    code = command.main(["data", "check", str(source), "--workers=1", *more])
    return code, capsys.readouterr()


def test_a_label_of_no_class_is_a_bad_record(tmp_path, capsys):
    folder = packed(tmp_path / "p", labelled(0, 2, 1), [*labelled(-3), b"DLBL12"])
    source = sources.open_source(f"arrayrecord:{folder}")
    assert [source[i].label for i in (0, 2)] == [0, 1]
    for index, words in [(1, "has label 2, but there are 2 classes"), (3, "label -3")]:
        with pytest.raises(OSError, match=words):
            source[index]
    with pytest.raises(OSError, match="cut short in its label"):
        source[4]
    code, said = check(folder, capsys)
    assert code == 1 and "has label 2" in said.out and "5 records, 3 bad" in said.out


def test_shards_that_are_missing_or_cut_are_all_named(tmp_path, capsys):
    folder = packed(tmp_path / "p", *[labelled(0, 1)] * 5)
    assert check(folder, capsys)[0] == 0
    shards = sorted(folder.glob("*.arrayrecord"))
    for shard in shards[:4]:
        shard.unlink()
    shards[4].write_bytes(shards[4].read_bytes()[:-1000])
    with pytest.raises(ValueError, match="copy 5 of 5 shards") as caught:
        sources.open_source(f"arrayrecord:{folder}")
    assert f"{shards[0]} is missing" in str(caught.value)
    code, said = check(folder, capsys, f"--out={tmp_path / 'bad.txt'}")
    assert code == 1 and "5 bad" in said.out
    assert all(str(shard) in (tmp_path / "bad.txt").read_text() for shard in shards)


def test_foreign_shards_are_refused_or_told(tmp_path, capsys):
    folder = packed(tmp_path / "p", labelled(0, 1), labelled(0, 1, 0))
    other = packed(tmp_path / "q", labelled(0, 1, 0), labelled(1, 1))
    first, second = sorted(folder.glob("*.arrayrecord"))
    swapped = first.read_bytes(), second.read_bytes()
    if len(swapped[0]) == len(swapped[1]):  # the manifest's sizes hold
        first.write_bytes(swapped[1]), second.write_bytes(swapped[0])
        with pytest.raises(ValueError, match=f"{first} holds 3 records"):
            sources.open_source(f"arrayrecord:{folder}")
        first.write_bytes(swapped[0]), second.write_bytes(swapped[1])
    stray = folder / "data-00000-of-00009.arrayrecord"
    stray.write_bytes(next(other.glob("*.arrayrecord")).read_bytes())
    code, said = check(folder, capsys)
    assert code == 1 and f"{stray}: no shard of the manifest" in said.out
    code, said = check(f"demo:val@1;arrayrecord:{folder}@2", capsys)
    assert code == 1 and f"{stray}: no shard of the manifest" in said.out


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (gzip.compress(bytes(100_000)), "is gzip-compressed"),
        (b"<html>", "is an HTML page"),
        (tars.packed([("a.jpg", JPEGS[0])]), "is a tar file"),
        (bytes(200_000), "is zeros"),
        (b"x" * 200_000, "is missing, cut short or of another format"),
    ],
)
def test_what_is_no_record_file_is_called_by_its_name(data, words, tmp_path):
    recordfiles.write(tmp_path / "a.array_record", labelled(0, 1))
    (tmp_path / "b.array_record").write_bytes(data)
    (tmp_path / "c.array_record").write_bytes(b"{}")
    with pytest.raises(ValueError, match=f"b.array_record {words}") as caught:
        sources.open_source(f"arrayrecord:{tmp_path}/*.array_record")
    assert "c.array_record is a JSON text" in str(caught.value)
    assert "copy or pack 2 of 3 files again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_whose_packing_has_not_ended_is_refused(tmp_path):
    folder = packed(tmp_path / "p", labelled(0, 1))
    (folder / "manifest.json").unlink()
    with pytest.raises(
        ValueError, match=r"is no packed data set, for it has no manifest.json"
    ):
        sources.open_source(f"arrayrecord:{folder}")
