"""Tar files as people have them: damaged, joined, linked, sorted by extension."""

import gzip
import io
import pickle
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tars

from dinov2_jax import __main__ as command
from dinov2_jax.data import listing, sources, walk

JPEGS = [tars.jpeg(20 * i) for i in range(12)]


def sample(number, label):
    return [(f"{number:04}.cls", b"%d" % label), (f"{number:04}.jpg", JPEGS[number])]


def opened(tmp_path, data, name="x.tar"):
    (tmp_path / name).write_bytes(data)
    return sources.open_source(f"tar:{tmp_path}/{name}")


def checked(tmp_path, capsys, spec=None):
    """The exit code and the report of data check."""
    code = command.main(
        ["data", "check", spec or f"tar:{tmp_path}/x.tar", "--workers=1"]
    )
    return code, capsys.readouterr()


def test_what_follows_a_damaged_header_is_read_and_the_damage_named(tmp_path, capsys):
    data = bytearray(tars.packed([x for i in range(6) for x in sample(i, i % 3)]))
    at = tars.offsets(data)["0002.jpg"]
    data[at + 10] ^= 0xFF
    source = opened(tmp_path, data)
    assert tars.listed(source) == {
        f"{i:04}.jpg": (JPEGS[i], i % 3) for i in (0, 1, 3, 4, 5)
    }
    after = tars.offsets(tars.packed([("a", JPEGS[2]), ("b", b"")]))["b"] + at
    line = f"x.tar has no valid header at byte {at}; all from there to byte"
    assert any(line in fault and f" {after} " in fault for fault in source.faults)
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.tar: 2 faults: " in line and f"at byte {at}" in line
    code, said = checked(tmp_path, capsys)
    assert code == 1 and f"at byte {at}" in said.out and "5 records, 2 bad" in said.out


@pytest.mark.parametrize("blank", [b"\0", b"\xff"])
@pytest.mark.parametrize("which", [0, 5])
def test_a_header_that_was_overwritten_costs_one_member(which, blank, tmp_path):
    data = bytearray(tars.packed([(f"k/{i}.jpg", JPEGS[i]) for i in range(6)]))
    at = tars.offsets(data)[f"k/{which}.jpg"]
    data[at : at + 512] = blank * 512
    source = opened(tmp_path, data)
    rest = [i for i in range(6) if i != which]
    assert tars.listed(source) == {f"k/{i}.jpg": (JPEGS[i], 0) for i in rest}
    (fault,) = source.faults
    assert f"no valid header at byte {at};" in fault


def test_tar_files_put_together_are_read_whole_with_the_labels_of_each(tmp_path):
    parts = [
        tars.packed(sample(0, 3) + sample(1, 1), tarfile.GNU_FORMAT),
        tars.packed(sample(0, 2)[::-1]),  # the same names in another file
        tars.packed(sample(2, 0), tarfile.USTAR_FORMAT),
    ]
    source = opened(tmp_path, b"".join(parts))
    labels = [(source[i].image, source[i].label) for i in range(len(source))]
    assert labels == [(JPEGS[0], 3), (JPEGS[1], 1), (JPEGS[0], 2), (JPEGS[2], 0)]
    assert source.faults == ()


def test_links_lead_to_their_members(tmp_path, capsys):
    members = [
        ("blobs/1", JPEGS[1]),
        ("cat/a.jpg", JPEGS[0]),
        ("dog/hard.jpg", tarfile.LNKTYPE, "cat/a.jpg"),
        ("dog/soft.jpg", tarfile.SYMTYPE, "../cat/a.jpg"),
        ("dog/chain.jpg", tarfile.SYMTYPE, "soft.jpg"),
        ("dog/blob.jpg", tarfile.SYMTYPE, "../blobs/1"),
        ("dog/early.jpg", tarfile.SYMTYPE, "late.jpg"),
        ("dog/late.jpg", JPEGS[2]),
        ("latest", tarfile.SYMTYPE, "dog"),
        ("dog/circle.jpg", tarfile.SYMTYPE, "circle.jpg"),
        ("dog/outside.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    ]
    source = opened(tmp_path, tars.packed(members))
    assert tars.listed(source) == {
        "cat/a.jpg": (JPEGS[0], 0),
        "dog/hard.jpg": (JPEGS[0], 1),
        "dog/soft.jpg": (JPEGS[0], 1),
        "dog/chain.jpg": (JPEGS[0], 1),
        "dog/blob.jpg": (JPEGS[1], 1),
        "dog/early.jpg": (JPEGS[2], 1),
        "dog/late.jpg": (JPEGS[2], 1),
    }
    names = [fault.split(" ")[0].rpartition("/")[2] for fault in source.faults]
    assert names == ["circle.jpg", "outside.jpg"]
    assert "links to other files: 1 (latest)" in capsys.readouterr().err


def test_a_label_may_be_a_link(tmp_path):
    members = [*sample(0, 4), ("0001.cls", tarfile.LNKTYPE, "0000.cls")]
    source = opened(tmp_path, tars.packed([*members, ("0001.jpg", JPEGS[1])]))
    assert [source[i].label for i in range(2)] == [4, 4]


def test_labels_are_found_however_far_they_stand(tmp_path):
    members = [x for i in range(8) for x in sample(i, (3 * i) % 5)]
    by_extension = sorted(members, key=lambda member: member[0][::-1])
    source = opened(tmp_path, tars.packed(by_extension))
    found = tars.listed(source)
    assert found == {f"{i:04}.jpg": (JPEGS[i], (3 * i) % 5) for i in range(8)}
    assert source.classes == ("0", "1", "2", "3", "4") and source.faults == ()


def test_what_macos_adds_is_neither_label_nor_image(tmp_path, capsys):
    members = []
    for name, data in sample(0, 1) + sample(1, 0):
        members += [(f"./._{name}", b"\0\5\x16\7 attributes"), (f"./{name}", data)]
    source = opened(tmp_path, tars.packed(members))
    assert tars.listed(source) == {"0000.jpg": (JPEGS[0], 1), "0001.jpg": (JPEGS[1], 0)}


def test_pipes_and_devices_in_a_tar_file_are_counted(tmp_path, capsys):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind in {"a": tarfile.DIRTYPE, "a/x.jpg": tarfile.FIFOTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type = kind
            file.addfile(member)
    source = opened(tmp_path, buffer.getvalue() + tars.packed([("a/1.jpg", JPEGS[0])]))
    assert len(source) == 1 and not source.faults
    assert f"{walk.SPECIAL}: 1 (a/x.jpg)" in capsys.readouterr().err


def test_keys_with_dots_have_labels_of_their_own(tmp_path):
    names = ["img.0001", "img.0002", "n.v.0001", "n.v.0002"]
    members = []
    for i, name in enumerate(names):
        members += [(f"{name}.jpg", JPEGS[i]), (f"{name}.cls", b"%d" % i)]
    source = opened(tmp_path, tars.packed(members))
    assert tars.listed(source) == {
        f"{name}.jpg": (JPEGS[i], i) for i, name in enumerate(names)
    }


def test_a_key_ends_at_its_first_dot(tmp_path):
    members = [("a/1.jpg", JPEGS[0]), ("b/1.jpg", JPEGS[1]), ("b/1.2.jpg", JPEGS[2])]
    labels = [("a/1.cls", b"7"), ("b/1.cls", b"5")]
    source = opened(tmp_path, tars.packed(members + labels))
    assert [label for _, label in tars.listed(source).values()] == [7, 5, 5]


def test_a_mask_beside_an_image_is_no_image(tmp_path, capsys):
    members = []
    for i in range(4):
        image = sample(i, i) if i != 2 else sample(i, i)[:1]  # one lacks its image
        members += [*image, (f"{i:04}.seg.png", b"a mask")]
    source = opened(tmp_path, tars.packed(members))
    assert tars.listed(source) == {f"{i:04}.jpg": (JPEGS[i], i) for i in (0, 1, 3)}
    assert "4 .seg.png" in capsys.readouterr().err


def test_of_two_members_of_one_name_the_last_is_taken_and_the_first_told(
    tmp_path, capsys
):
    members = [*sample(0, 1), *sample(1, 2)]
    again = [("0000.jpg", JPEGS[5]), ("0000.cls", b"0")]
    source = opened(tmp_path, tars.packed(members + again))
    assert tars.listed(source) == {"0001.jpg": (JPEGS[1], 2), "0000.jpg": (JPEGS[5], 0)}
    assert len(source.faults) == 2 and "0000.cls occurs again" in source.faults[0]
    code, said = checked(tmp_path, capsys)
    assert code == 1 and "0000.jpg occurs again" in said.out


def test_a_label_without_an_image_is_told(tmp_path):
    source = opened(tmp_path, tars.packed([*sample(0, 0), ("0001.cls", b"1")]))
    assert len(source) == 1 and "0001.cls has no image of its name" in source.faults[0]


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jpg", JPEGS[0])
    return out.getvalue()


WHOLE = tars.packed([("k/0.jpg", JPEGS[0]), ("k/1.jpg", JPEGS[1])])
REFUSED = {
    "cut within a member": (WHOLE[:2100], "is cut short: k/1.jpg ends at byte"),
    "cut within a header": (WHOLE[:1600], "is cut short within a header"),
    "empty": (b"", "it is empty; copy or pack 1 of 1 shards again"),
    "zeros": (bytes(10240), "holds no file; check the path, or copy"),
    "gzip": (gzip.compress(WHOLE), "it is gzip-compressed; unpack it"),
    "zip": (zipped(), "it is a zip file; copy"),
    "a page": (b"\n<!DOCTYPE html><html>404", "it is an HTML page"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "random": (np.random.default_rng(0).bytes(5000), "has no valid header"),
    "a negative size": (
        WHOLE[:124] + b"\xff" * 12 + WHOLE[136:512],
        "has no valid header",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_tar_file_is_called_by_its_name(what, tmp_path, capsys):
    data, words = REFUSED[what]
    (tmp_path / "good.tar").write_bytes(WHOLE)
    with pytest.raises(ValueError, match=words) as caught:
        opened(tmp_path, data)
    assert "x.tar" in str(caught.value) and "\n" not in str(caught.value)
    code, said = checked(tmp_path, capsys, f"tar:{tmp_path}/*.tar")
    assert code == 1 and "x.tar" in (said.err + said.out)


def test_a_shard_cut_between_members_is_told(tmp_path):
    source = opened(tmp_path, WHOLE[: tars.offsets(WHOLE)["k/1.jpg"]])
    assert len(source) == 1 and "may be cut short" in source.faults[0]


def test_a_kept_list_keeps_its_faults(tmp_path, monkeypatch, capsys):
    data = tars.packed([*sample(0, 1), *sample(0, 1)])
    (tmp_path / "x.tar").write_bytes(data)
    first = sources.open_source(f"tar:{tmp_path}/x.tar", cache_dir=tmp_path / "run")
    monkeypatch.setattr(listing, "build", lambda *_: pytest.fail("listed again"))
    capsys.readouterr()
    walk.say.cache_clear()  # as in another process
    again = sources.open_source(f"tar:{tmp_path}/x.tar", cache_dir=tmp_path / "run")
    assert again.faults == first.faults and "occurs again" in capsys.readouterr().err
    assert pickle.loads(pickle.dumps(again))[0] == first[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_shard_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "x.tar").symlink_to("/proc/self/mem")
    with pytest.raises(ValueError, match=r"x.tar cannot be read: .*; copy or pack"):
        sources.open_source(f"tar:{tmp_path}/x.tar")
