"""What stands in folders beside pictures: it is passed over, counted and named."""

import contextlib
import io
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data import dense, listing, sources, video, walk


def picture(kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 60, 30)).save(file, kind)
    return file.getvalue()


def put(root, *names: str | bytes) -> None:
    """The same picture under all names."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(picture())


def below(source, root) -> list[str]:
    """Names of all records below a root."""
    names = [source.name(i) for i in range(len(source))]
    return [name.removeprefix(f"{root}/") for name in names]


def told(capsys) -> str:
    """The one line of what was ignored."""
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "ignored" in line]
    return line


@pytest.fixture
def unprivileged():
    """A folder of a user who may not read everything; works for root, too."""
    folder = pathlib.Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    os.chmod(listing._folder().name, 0o777)  # of this process, whoever it is

    @contextlib.contextmanager
    def lowered():
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    yield folder, lowered
    for path, folders, _ in os.walk(folder):
        for name in folders:
            os.chmod(os.path.join(path, name), 0o755)
    shutil.rmtree(folder)


LEFT = [
    ".ipynb_checkpoints/x-checkpoint.jpg",
    ".Trash-1000/files/x.jpg",
    "@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/cat/._x.jpg",
    "cat/._x.jpg",
    "cat/.DS_Store",
    "cat/Thumbs.db",
    "lost+found/x.jpg",
    "$RECYCLE.BIN/x.jpg",
    "System Volume Information/x.jpg",
    ".git/x.jpg",
    "cat/.thumbnails/x.jpg",
    "cat/@EADIR/x.jpg",
]


def test_hidden_and_service_entries_are_no_pictures_and_no_classes(tmp_path, capsys):
    put(tmp_path, "cat/x.jpg", "dog/y.jpg", *LEFT)
    source = sources.open_source(f"folder:{tmp_path}")
    assert source.classes == ("cat", "dog")
    assert below(source, tmp_path) == ["cat/x.jpg", "dog/y.jpg"]
    assert f"hidden or service entries: {len(LEFT)} (" in told(capsys)


def test_hidden_and_service_members_of_a_tar_are_no_pictures(tmp_path, capsys):
    put(tmp_path / "in", "cat/x.jpg", *LEFT)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "in", ".")
    source = sources.open_source(f"tar:{tmp_path}/x.tar")
    assert source.classes == ("cat",)
    assert below(source, tmp_path) == ["x.tar/cat/x.jpg"]
    assert f"hidden or service entries: {len(LEFT)} (" in told(capsys)


def test_a_root_may_be_hidden_itself(tmp_path):
    root = tmp_path / ".cache" / "@eaDir"
    put(root, "cat/x.jpg")
    assert len(sources.open_source(f"folder:{root}")) == 1


def test_every_extension_that_decodes_is_read_and_others_are_counted(tmp_path, capsys):
    names = ["a.jfif", "b.jpe", "c.JPG", "d.avif", "e.jp2", "f.webp"]
    put(tmp_path, *names, "g.heic", "h.HEIC", "i.txt", "README")
    source = sources.open_source(f"folder:{tmp_path}")
    assert below(source, tmp_path) == sorted(names, key=os.fsencode)
    line = told(capsys)
    assert "6 images; ignored 4 of 10 files: 2 .heic, " in line
    assert "1 .txt" in line and "1 without extension" in line


def odd(root) -> None:
    """Entries that are no regular files, and links of all kinds."""
    os.mkfifo(root / "cat/pipe.jpg")
    os.symlink("/dev/zero", root / "cat/zero.jpg")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as name:
        here = os.getcwd()
        os.chdir(root)  # a socket's path is short
        name.bind("cat/socket.jpg")
        os.chdir(here)
    os.symlink("self.jpg", root / "cat/self.jpg")
    os.symlink("nowhere.jpg", root / "cat/broken.jpg")
    os.symlink(".", root / "cat/loop")
    os.symlink("..", root / "cat/up")
    os.symlink("../dog", root / "cat/to_dog")
    os.symlink("../cat", root / "dog/to_cat")
    os.symlink("/", root / "cat/everything")


def test_an_odd_entry_of_a_folder_is_passed_over_and_named(tmp_path, capsys):
    root = tmp_path / "images"
    put(root, "cat/x.jpg", "dog/y.jpg")
    odd(root)
    source = sources.open_source(f"folder:{root}")
    assert below(source, root) == ["cat/x.jpg", "dog/y.jpg"]
    line = told(capsys)
    assert f"{walk.SPECIAL}: 3 (cat/pipe.jpg, cat/socket.jpg, cat/zero.jpg)" in line
    assert f"{walk.BROKEN}: 2 (cat/broken.jpg, cat/self.jpg)" in line
    assert f"{walk.AGAIN}: 5 (" in line


def test_links_to_files_and_to_folders_elsewhere_are_followed_once(tmp_path):
    put(tmp_path / "elsewhere", "1.jpg", "deep/2.jpg")
    root = tmp_path / "images"
    put(root, "cat/x.jpg", ".store/3.jpg")
    os.symlink("x.jpg", root / "cat/y.jpg")
    os.symlink(tmp_path / "elsewhere", root / "dog")
    os.symlink(tmp_path / "elsewhere", root / "dog_again")
    os.symlink(tmp_path / "elsewhere/deep", root / "emu")
    os.symlink(".store", root / "fox")
    os.symlink("cat", root / "a_cat_before_the_real_one")
    source = sources.open_source(f"folder:{root}")
    assert below(source, root) == [
        "cat/x.jpg",
        "cat/y.jpg",
        "dog/1.jpg",
        "emu/2.jpg",
        "fox/3.jpg",
    ]
    assert source.classes == ("cat", "dog", "emu", "fox")


def test_an_unreadable_folder_is_passed_over_until_it_can_be_read(unprivileged, capsys):
    root, lowered = unprivileged
    put(root, "cat/x.jpg", "owl/y.jpg")
    (root / "owl").chmod(0)
    cache = root / ".lists"
    cache.mkdir()
    cache.chmod(0o777)
    with lowered():
        source = sources.open_source(f"folder:{root}", cache_dir=cache)
        assert below(source, root) == ["cat/x.jpg"]
    assert f"{walk.UNREADABLE}: 1 (owl)" in told(capsys)
    (root / "owl").chmod(0o755)
    assert len(sources.open_source(f"folder:{root}", cache_dir=cache)) == 2


def test_an_unreadable_root_says_so(unprivileged):
    root, lowered = unprivileged
    put(root, "owl/x.jpg")
    (root / "owl").chmod(0)
    with lowered(), pytest.raises(OSError, match="owl cannot be read .*denied"):
        sources.open_source(f"folder:{root}/owl")


def test_a_kept_list_tells_again_what_it_left_out(tmp_path, capsys):
    put(tmp_path / "images", "cat/x.jpg", "cat/y.heic", "cat/._x.jpg")
    spec, lines = f"folder:{tmp_path}/images", []
    for _ in range(2):
        walk.say.cache_clear()
        capsys.readouterr()
        sources.open_source(spec, cache_dir=tmp_path / "lists")
        lines.append(told(capsys))
    assert lines[0] == lines[1] and "1 .heic" in lines[0]
    (kept,) = (tmp_path / "lists").glob("*.npz")
    assert listing.load(kept) is not None


def test_folders_that_differ_in_unicode_form_alone_are_one_class(tmp_path):
    put(tmp_path, "caf\u00e9/x.jpg", "cafe\u0301/y.jpg", b"caf\xe9/z.jpg", "dog/z.jpg")
    source = sources.open_source(f"folder:{tmp_path}")
    assert source.classes == (r"caf\xe9", "caf\u00e9", "dog")
    labels = [source[i].label for i in range(4)]
    assert sorted(labels) == [0, 1, 1, 2]
    assert all(source[i].image == picture() for i in range(4))


def pairs(root) -> str:
    put(root / "images", "a/x.jpg", "a/._x.jpg", "a/cafe\u0301.jpg", "a/y.heic")
    for name in ("a/x.png", "a/._x.png", "a/caf\u00e9.png"):
        path = root / "maps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    for folder in ("images", "maps"):
        os.symlink(".", root / folder / "a" / "loop")
        os.mkfifo(root / folder / "a" / "pipe.png")
    return f"pairs:{root}/images,{root}/maps"


def test_pairs_are_regular_files_each_once(tmp_path, capsys):
    source = dense.open_labels(pairs(tmp_path), classes=2)
    assert below(source, tmp_path / "images") == ["a/cafe\u0301.jpg", "a/x.jpg"]
    assert source[0].image.shape == (8, 8, 3)
    line = told(capsys)
    assert "1 .heic" in line and f"{walk.HIDDEN}: 2" in line
    assert f"{walk.AGAIN}: 2" in line and f"{walk.SPECIAL}: 2" in line


def test_a_list_that_names_hidden_files_loses_them(tmp_path, capsys):
    put(tmp_path, "x.jpg", "._x.jpg", b"caf\xe9.jpg")
    lines = b"x.jpg x.npy\n._x.jpg ._x.npy\ncaf\xe9.jpg x.npy\n"
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + lines)
    np.save(tmp_path / "x.npy", np.ones((8, 8), np.float32))
    source = dense.open_depth(f"nyud:{tmp_path}:list.txt")
    assert below(source, tmp_path) == ["x.jpg", r"caf\xe9.jpg"]
    assert source[1].target.shape == (8, 8)
    assert f"{walk.HIDDEN}: 1 (._x.jpg)" in told(capsys)


def test_clips_are_found_among_odd_entries(unprivileged, capsys):
    root, lowered = unprivileged
    put(root, "left/clip/1.jpg", "left/clip/2.jfif", "left/clip/._1.jpg")
    put(root, "left/clip/3.heic", "@eaDir/clip/1.jpg", "left/locked/1.jpg")
    put(root, b"caf\xe9/clip\n/1.jpg")
    os.mkfifo(root / "left/clip/0.jpg")
    os.mkfifo(root / "left/film.mp4")
    os.symlink(".", root / "left/loop")
    os.symlink("left", root / "also_left")
    (root / "left/locked").chmod(0)
    with lowered():
        source = video.Frames(str(root), 2)
        assert source.classes == (r"caf\xe9", "left")
        assert [source[i].label for i in range(4)] == [0, 0, 1, 1]
    assert below(source, root)[::2] == [r"caf\xe9/clip\n frame 0", "left/clip frame 0"]
    line = told(capsys)
    assert f"{walk.SPECIAL}: 2" in line and f"{walk.AGAIN}: 2" in line
    assert f"{walk.HIDDEN}: 2" in line and f"{walk.UNREADABLE}: 1" in line


@pytest.mark.parametrize("root", ["", "memory:/"])
def test_a_wildcard_names_no_hidden_and_no_service_entries(root, tmp_path, capsys):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        put(tmp_path, "x.jpg")
        tar.add(tmp_path / "x.jpg", "cat/x.jpg")
    names = ["in/a.tar", "in/._a.tar", "@eaDir/a.tar", "__MACOSX/a.tar"]
    system, _ = fsspec.core.url_to_fs(f"{root}{tmp_path}")
    for name in names:
        file = f"{tmp_path}/data/{name}"
        system.makedirs(os.path.dirname(file), exist_ok=True)
        system.pipe(file, (tmp_path / "x.tar").read_bytes())
    try:
        source = sources.open_source(f"tar:{root}{tmp_path}/data/*/*.tar")
        assert len(source) == 1
        assert f"{walk.HIDDEN}: " in told(capsys)
        assert len(sources.open_source(f"tar:{root}{tmp_path}/data/@eaDir/*.tar")) == 1
    finally:
        system.rm(f"{tmp_path}/data", recursive=True)


OPENED = """
import sys
from dinov2_jax import processes
from dinov2_jax.data import sources
processes.start()
print(len(sources.open_source(sys.argv[1])))
sys.exit(processes.leave(0))
"""


def test_of_several_processes_the_first_tells_what_is_ignored(tmp_path):
    put(tmp_path, "cat/x.jpg", "cat/y.heic")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {"COORDINATOR": address, "PROCESSES": "2"}
    started = []
    for index in range(2):
        told = variables | {"PROCESS": str(index), "TIMEOUT": "120"}
        named = {f"DINOV2_JAX_{key}": value for key, value in told.items()}
        process = subprocess.Popen(
            [sys.executable, "-c", OPENED, f"folder:{tmp_path}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=os.environ | named | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        )
        started.append(process)
    said = [process.communicate(timeout=300) for process in started]
    assert all(out.endswith("1\n") for out, _ in said), said  # behind what Gloo says
    assert ["ignored 1 of 2 files: 1 .heic" in err for _, err in said] == [True, False]
