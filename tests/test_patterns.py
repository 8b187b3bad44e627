"""Which files a spec names: odd characters, lists, braces, folders, what is missing."""

import os

import fsspec
import pytest
import recordfiles
import tars

from dinov2_jax import __main__ as command
from dinov2_jax.data import arrays, braces, patterns, sources, walk

JPEGS = [tars.jpeg(20 * i) for i in range(12)]


@pytest.fixture(autouse=True)
def _said_anew():
    """Lines are said once a process; each test is one of its own."""
    walk.say.cache_clear()


def shard(path, *numbers):
    """A tar file with an image for each number, whose label the number is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [(f"{i:02}.jpg", JPEGS[i]) for i in numbers]
    members += [(f"{i:02}.cls", b"%d" % i) for i in numbers]
    path.write_bytes(tars.packed(members))
    return path


def numbers(spec):
    """Which images a source has; each one's label is its number."""
    source = sources.open_source(spec)
    found = [JPEGS.index(source[i].image) for i in range(len(source))]
    assert found == [source[i].label for i in range(len(source))]
    return found


ODD = ["[set]", "a;b", "x@2", "{a,b}", "what?", "st*r", "a::b", "a;folder:b@3", "[!x]"]


@pytest.mark.parametrize("name", ODD)
def test_a_path_that_exists_is_taken_as_it_is_spelt(name, tmp_path):
    root = tmp_path / name
    shard(root / "0.tar", 0)
    shard(root / "1.tar", 1)
    shard(root / f"{name}.tar", 2)
    shard(tmp_path / "s/3.tar", 3)  # what a wildcard in the name would match
    shard(tmp_path / "a/3.tar", 3)
    assert numbers(f"tar:{root}/0.tar") == [0]
    assert numbers(f"tar:{root}/{name}.tar") == [2]
    assert numbers(f"tar:{root}/{{0,1}}.tar") == [0, 1]
    assert sorted(numbers(f"tar:{root}/*.tar")) == [0, 1, 2]
    assert sorted(numbers(f"tar:{root}")) == [0, 1, 2]
    assert numbers(f"tar:{root}/0.tar::{root}/1.tar") == [0, 1]
    mixed = sources.open_source(f"tar:{root}/0.tar@3; tar:{root}@0.5")
    assert mixed.weights == (3, 0.5) and [len(x) for x in mixed.sources] == [1, 3]


@pytest.mark.parametrize("name", ODD)
def test_folders_of_all_names_are_taken_as_they_are_spelt(name, tmp_path):
    for inner in ("one", name):
        path = tmp_path / inner / "k" / "x.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(JPEGS[0])
    assert len(sources.open_source(f"folder:{tmp_path}/{name}")) == 1
    mixed = sources.open_source(f"folder:{tmp_path}/{name};folder:{tmp_path}/one@2")
    assert mixed.weights == (1, 2)
    assert mixed.name(0) == f"{tmp_path}/{name}/k/x.jpg"


def test_semicolons_and_ats_can_be_escaped():
    assert sources.split(r"tar:s3://b/x\;y.tar@2;tar:s3://b/z\@3") == [
        ("tar:s3://b/x;y.tar", 2.0),
        ("tar:s3://b/z@3", 1.0),
    ]


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("x-{000..002}", ["x-000", "x-001", "x-002"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11..3}", ["08", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
        ("{a,b{1..2},}x", ["ax", "b1x", "b2x", "x"]),
        ("{a{0..1},{b,c}}", ["a0", "a1", "b", "c"]),
        ("{a}{", ["{a}{"]),
        ("{x{1,2}}", ["{x1}", "{x2}"]),
    ],
)
def test_braces_stand_for_what_they_do_in_a_shell(text, listed):
    assert list(braces.expanded(text)) == listed


def test_lists_and_braces_are_read_in_one_order(tmp_path):
    for i in range(4):
        shard(tmp_path / f"{('train', 'val')[i // 2]}-{i % 2:03}.tar", i)
    assert numbers(f"tar:{tmp_path}/{{train,val}}-{{000..001}}.tar") == [0, 1, 2, 3]
    assert numbers(f"tar:{tmp_path}/val-001.tar::{tmp_path}/train-*.tar") == [0, 1, 3]


def test_shards_that_are_listed_and_missing_are_named(tmp_path, capsys):
    for i in (0, 2):
        shard(tmp_path / f"{i:03}.tar", i)
    spec = f"tar:{tmp_path}/{{000..009}}.tar"
    with pytest.raises(
        ValueError, match=r"/001.tar is missing; .* 5 more; copy 8 of the 10"
    ):
        sources.open_source(spec)
    assert command.main(["data", "check", spec]) == 1
    said = capsys.readouterr().out
    assert "/009.tar is missing" in said and "0 records, 8 bad" in said
    with pytest.raises(ValueError, match=r"/no.tar is missing; copy 1 of the 2"):
        sources.open_source(f"tar:{tmp_path}/000.tar::{tmp_path}/no.tar")
    with pytest.raises(ValueError, match="matches no file"):
        sources.open_source(f"tar:{tmp_path}/x-{{0..3}}.tar")


@pytest.mark.parametrize("kind", ["tar", "parquet", "arrayrecord"])
@pytest.mark.parametrize("braces", ["{0..99999999}", "{0..9999}{0..9999}{0..9999}"])
def test_a_list_that_never_ends_is_refused(kind, braces, tmp_path):
    with pytest.raises(ValueError, match="more than 1,000,000 files"):
        sources.open_source(f"{kind}:{tmp_path}/{braces}.tar")


def test_a_file_that_is_named_twice_is_read_once_and_told(tmp_path, capsys):
    for i in range(3):
        shard(tmp_path / f"{i}.tar", i)
    os.link(tmp_path / "1.tar", tmp_path / "hard.tar")
    (tmp_path / "soft.tar").symlink_to(tmp_path / "2.tar")
    spec = f"tar:{tmp_path}/*.tar::{tmp_path}/{{0..1}}.tar"
    source = sources.open_source(spec)
    assert [source[i].label for i in range(len(source))] == [0, 1, 2]
    (fault,) = source.faults
    assert (
        fault.startswith("named more than once, read once: ")
        and "and 1 more" in fault
        and fault in capsys.readouterr().err
    )


def test_a_file_in_two_sources_of_a_mixture_is_told(tmp_path, capsys):
    for i in range(3):
        shard(tmp_path / f"{i}.tar", i)
    sources.open_source(f"tar:{tmp_path}/{{0,1}}.tar@3;tar:{tmp_path}/{{1,2}}.tar")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"files in several sources of a mixture: {tmp_path}/1.tar"


def test_a_folder_is_read_at_any_depth_without_what_is_hidden(tmp_path):
    for i, name in enumerate(["a.tar", "b/c.tar", "b/d/e.TAR"]):
        shard(tmp_path / name, i)
    shard(tmp_path / ".cache/f.tar", 5)
    shard(tmp_path / "._a.tar", 5)
    (tmp_path / "README.md").write_text("shards")
    assert numbers(f"tar:{tmp_path}") == numbers(f"tar:{tmp_path}/") == [0, 1, 2]


def test_a_folder_of_two_splits_is_refused_by_their_names(tmp_path):
    for i, name in enumerate(["train/0.tar", "train/1.tar", "val/0.tar"]):
        shard(tmp_path / name, i)
    with pytest.raises(ValueError, match="several splits, train, validation") as caught:
        sources.open_source(f"tar:{tmp_path}")
    assert f"tar:{tmp_path}/train (files: 2)" in str(caught.value)
    assert numbers(f"tar:{tmp_path}/train") == [0, 1]
    assert numbers(f"tar:{tmp_path}/train/*") == [0, 1]


def test_folders_and_odd_files_that_match_are_told(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "x.jpg").write_bytes(JPEGS[0])
    for spec, words in [
        (f"tar:{tmp_path}/a*", "matches folders only; name one"),
        (f"tar:{tmp_path}", "without files of this kind .it holds 1 .jpg."),
        (f"parquet:{tmp_path}/a", "it holds nothing"),
        (f"arrayrecord:{tmp_path}/a*", "matches folders only"),
    ]:
        with pytest.raises(ValueError, match=words):
            sources.open_source(spec)
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(ValueError, match="is no regular file"):
        sources.open_source(f"tar:{tmp_path}/pipe*")


def test_array_records_are_named_like_tar_files(tmp_path):
    for i in range(3):
        record = arrays.labelled_record(JPEGS[i], i)
        path = tmp_path / f"[x]/n-train.array_record-{i:05}-of-00003"
        path.parent.mkdir(exist_ok=True)
        recordfiles.write(path, [record])
    root = f"arrayrecord:{tmp_path}/[x]"
    one = f"{tmp_path}/[x]/n-train.array_record-00001-of-00003"
    assert numbers(root) == [0, 1, 2]
    assert numbers(f"{root}/n-train.array_record-{{00000..00001}}-of-00003") == [0, 1]
    assert numbers(f"{root}/n-train.array_record-00000-of-00003::{one}") == [0, 1]
    with pytest.raises(ValueError, match=r"1 of the 4 files"):
        sources.open_source(f"{root}/n-train.array_record-{{00000..00003}}-of-00003")
    os.unlink(one)
    (fault,) = sources.open_source(root).faults
    assert "1 of 3 numbered files are missing" in fault and one in fault


def test_sources_whose_classes_come_in_another_order_keep_their_names(tmp_path):
    for name, classes in [("a", ("cat", "dog")), ("b", ("dog", "cat"))]:
        for i, word in enumerate(classes):
            path = tmp_path / name / word / f"{i}.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(JPEGS[i])

    class Turned:
        """The classes of a source in the other order."""

        def __init__(self, source):
            self.source, self.classes = source, source.classes[::-1]

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            record = self.source[index]
            return record._replace(label=len(self.classes) - 1 - record.label)

        def name(self, index):
            return self.source.name(index)

    parts = [sources.open_source(f"folder:{tmp_path}/{x}") for x in "ab"]
    mixed = sources.Mixture((parts[0], Turned(parts[1])), (1, 1))
    for i in range(len(mixed)):
        assert f"/{mixed.classes[mixed[i].label]}/" in mixed.name(i)


def test_addresses_are_named_like_paths(tmp_path):
    bucket = fsspec.filesystem("memory")
    for i, name in enumerate(["x-0.tar", "x-1.tar", "in/[y].tar"]):
        bucket.pipe(f"/bucket/{name}", shard(tmp_path / "x.tar", i).read_bytes())
    bucket.pipe("/bucket/README.md", b"shards")
    root = "tar:memory://bucket"
    try:
        assert numbers(f"{root}/x-{{0..1}}.tar") == [0, 1]
        assert numbers(f"{root}/x-*.tar::{tmp_path}/x.tar") == [2, 0, 1]
        assert numbers(f"{root}/in/[y].tar") == [2]
        assert numbers(root) == [2, 0, 1]
        assert numbers(f"{root}/x-0.tar@2;demo:val".partition(";")[0]) == [0]
        with pytest.raises(ValueError, match="x-2.tar is missing; copy 1 of the 3"):
            sources.open_source(f"{root}/x-{{0..2}}.tar")
        with pytest.raises(ValueError, match="matches no file"):
            sources.open_source(f"{root}/none")
        with pytest.raises(ValueError, match=r"without files of this kind.* 3 .tar"):
            sources.open_source("parquet:memory://bucket")
    finally:
        bucket.rm("/bucket", recursive=True)
    assert patterns._parts("simplecache::s3://b/x.tar::s3://b/y.tar") == [
        "simplecache::s3://b/x.tar",
        "s3://b/y.tar",
    ]
