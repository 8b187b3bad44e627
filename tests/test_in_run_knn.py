"""In-run k-NN on splits that name their classes in orders of their own."""

import io
import types
import unicodedata

import jax
import numpy as np
import pytest
import tars
import test_parquet
import tiny
from PIL import Image

from dinov2_jax import errors, sharding
from dinov2_jax.cli import assemble, probes
from dinov2_jax.data import sources

COLORS = {"blå": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
ORDERS = [
    ["red", "green", "blå"],
    ["green", "red", unicodedata.normalize("NFD", "blå")],
    ["red", "blå"],  # a class fewer
    ["red"],
]


def jpeg(name: str, shade: int) -> bytes:
    """A picture of one colour, hardly shaded, that tells its class."""
    color = COLORS[unicodedata.normalize("NFC", name)]
    buffer = io.BytesIO()
    pixels = tuple(max(0, x - shade) for x in color)
    Image.new("RGB", (16, 16), pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def as_folder(where, names, unlabelled=0):
    for name in names:
        (where / name).mkdir(parents=True)
        for shade in range(8):
            (where / name / f"{shade}.jpg").write_bytes(jpeg(name, shade))
    for number in range(unlabelled):
        (where / f"{number}.jpg").write_bytes(jpeg(names[0], 0))
    return f"folder:{where}"


def as_tar(where, names):
    files = [(f"{x}/{i}.jpg", jpeg(x, i)) for x in names for i in range(8)]
    where.mkdir()
    (where / "x.tar").write_bytes(tars.packed(files))
    return f"tar:{where}/x.tar"


def as_parquet(where, names):
    rows = [(jpeg(x, i), number) for number, x in enumerate(names) for i in range(8)]
    images, labels = zip(*rows)
    columns = {"image": images, "label": labels}
    test_parquet.write(where / "x.parquet", columns, {"label": names})
    return f"parquet:{where}/x.parquet"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the in-run evaluation of step 0 says of two specs."""
    config = tiny.config(eval__neighbors=(1, 3))
    mesh = assemble.mesh(config)
    backbone = assemble.model(config, mesh).backbone
    folder = tmp_path_factory.mktemp("run")
    (folder / "pictures").mkdir()
    images = np.zeros((1, 16, 16, 3), np.float32)
    params = backbone.init(jax.random.key(0), images)["params"]
    state = types.SimpleNamespace(teacher={"backbone": params}, step=0)

    def measure(*specs: str) -> dict[str, float]:
        train, val = map(sources.open_source, specs)
        probes.require_labels(train, val, config.eval.limit)
        probe = probes.TeacherProbe(config, backbone, mesh, folder, train, val)
        return probe.measure(state)

    return measure


# Every way to write a split and every order of names.
@pytest.mark.parametrize(
    ("train", "val", "order"),
    [
        (as_folder, as_parquet, 0),
        (as_folder, as_parquet, 2),
        (as_folder, as_tar, 1),
        (as_parquet, as_folder, 3),
        (as_parquet, as_tar, 0),
        (as_tar, as_parquet, 1),
    ],
)
def test_classes_are_those_of_their_names(train, val, order, measured, tmp_path):
    names = ORDERS[1] if train is as_parquet else list(COLORS)
    specs = train(tmp_path / "train", names), val(tmp_path / "val", ORDERS[order])
    for name, accuracy in measured(*specs).items():
        # Colours are told apart by any features; labels by their names alone.
        if name.startswith("knn/"):
            assert accuracy == 1.0, name


@pytest.mark.parametrize("written", [as_folder, as_tar, as_parquet])
def test_a_class_that_train_lacks_is_refused_by_name(written, measured, tmp_path):
    train = as_folder(tmp_path / "train", ["green", "red"])
    with pytest.raises(
        errors.InputError, match=r"data\.val has 3 classes.* train: blå"
    ):
        measured(train, written(tmp_path / "val", list(COLORS)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_without_a_class_are_refused_at_once(split, tmp_path):
    specs = [
        as_folder(tmp_path / name, list(COLORS), unlabelled=2 * (name == split))
        for name in ("train", "val")
    ]
    with pytest.raises(errors.InputError, match=f"data.{split}: labels run from -1"):
        probes.require_labels(*map(sources.open_source, specs), 64)


def test_labels_that_are_read_with_the_images_are_looked_at_too(measured, tmp_path):
    columns = {"image": [jpeg("red", 0)] * 2, "label": [0, -1]}
    names = {"label": list(COLORS)}
    val = test_parquet.write(tmp_path / "x.parquet", columns, names)
    train = as_folder(tmp_path / "train", list(COLORS))
    with pytest.raises(errors.InputError, match="data.val: labels run from -1"):
        measured(train, f"parquet:{val}")


def test_a_mixture_knows_a_class_by_both_spellings(tmp_path):
    specs = as_folder(tmp_path / "a", ORDERS[0]), as_parquet(tmp_path / "b", ORDERS[1])
    mixed = sources.open_source(";".join(specs))
    names = [mixed.classes[mixed[index].label] for index in range(len(mixed))]
    want = 8 * ["blå"] + 8 * ["green"] + 8 * ["red"]
    want += 8 * ["green"] + 8 * ["red"] + 8 * ["blå"]
    assert names == want


def test_of_whole_splits_features_alone_are_gathered(measured, tmp_path, monkeypatch):
    gathered, whole = [], sharding.whole

    def watched(x):
        gathered.extend((leaf.ndim, len(leaf)) for leaf in jax.tree.leaves(x))
        return whole(x)

    monkeypatch.setattr(sharding, "whole", watched)
    splits = [as_folder(tmp_path / name, list(COLORS)) for name in ("train", "val")]
    assert "knn/raw_pixels_top1" in measured(*splits)
    assert {rows for _, rows in gathered} == {64, 24}  # whole splits; the pictures
    assert all(rank < 4 for rank, rows in gathered if rows == 64)
