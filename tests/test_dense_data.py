"""Photographs with maps: what is read, what is refused, and the crops made of them."""

import pathlib

import densefiles
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data import dense, dense_batches, dense_views, layouts

IDS = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
PHOTO = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)


def palette(path: pathlib.Path, ids: np.ndarray) -> None:
    """A PNG whose indices are the ids and whose colours mean nothing."""
    picture = Image.fromarray(ids, mode="P")
    picture.putpalette(list(np.random.default_rng(1).integers(0, 256, 768)))
    picture.save(path)


WRITERS = {
    "gray.png": lambda path: Image.fromarray(IDS).save(path),
    "wide.png": lambda path: Image.fromarray(IDS.astype(np.uint16)).save(path),
    "palette.png": lambda path: palette(path, IDS),
    "ids.npy": lambda path: np.save(path, IDS.astype(np.int64)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_label_maps_of_every_form_give_their_ids(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    found = dense.read_labels(str(path), classes=3)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, IDS)
    # ADE20k's: 0 is no class, 1 the first
    found = dense.read_labels(str(path), classes=2, first=1)
    np.testing.assert_array_equal(found, IDS.astype(int) - 1)
    found = dense.read_labels(str(path), classes=2, ignore=2)
    np.testing.assert_array_equal(found, np.where(IDS == 2, -1, IDS.astype(int)))


def test_ids_out_of_range_are_named(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png holds the ids 2; with 2 classes they"):
        dense.read_labels(str(tmp_path / "a.png"), classes=2)
    np.save(tmp_path / "b.npy", IDS.astype(np.int64) - 1)
    with pytest.raises(ValueError, match=r"b.npy holds the ids -1"):
        dense.read_labels(str(tmp_path / "b.npy"), classes=2)


def test_a_picture_in_colours_is_no_map(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="mode RGB; a label map"):
        dense.read_labels(str(tmp_path / "a.png"), classes=3)
    with pytest.raises(ValueError, match="mode RGB; a depth map has one number"):
        dense.read_depth(str(tmp_path / "a.png"))
    np.save(tmp_path / "a.npy", PHOTO)
    with pytest.raises(ValueError, match=r"\(4, 5, 3\) uint8; a depth map"):
        dense.read_depth(str(tmp_path / "a.npy"))
    np.save(tmp_path / "a.npy", IDS.astype(float))
    with pytest.raises(ValueError, match="holds float64; a label map holds integers"):
        dense.read_labels(str(tmp_path / "a.npy"), classes=3)
    (tmp_path / "a.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="a.npy cannot be read as a label map"):
        dense.read_labels(str(tmp_path / "a.npy"), classes=3)


def test_depth_comes_in_metres_and_is_0_where_unknown(tmp_path):
    millimetres = np.array([[0, 1, 1500], [65535, 256, 2]], np.uint16)
    Image.fromarray(millimetres).save(tmp_path / "a.png")
    found = dense.read_depth(str(tmp_path / "a.png"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, millimetres / 1000, rtol=1e-6)
    found = dense.read_depth(str(tmp_path / "a.png"), scale=256.0)
    np.testing.assert_allclose(found, millimetres / 256, rtol=1e-6)
    np.save(tmp_path / "a.npy", np.array([[np.nan, -1, np.inf, 2.5]], np.float16))
    found = dense.read_depth(str(tmp_path / "a.npy"))
    np.testing.assert_array_equal(found, [[0, 0, 0, 2.5]])


def folders(root: pathlib.Path, names: list[str]) -> str:
    """The spec of so many pairs."""
    for name in names:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PHOTO).save(root / "images" / f"{name}.png")
        Image.fromarray(IDS).save(root / "maps" / f"{name}.png")
    return f"pairs:{root / 'images'},{root / 'maps'}"


def test_partners_are_found_by_their_names(tmp_path):
    spec = folders(tmp_path, ["b", "a/c", "a/b"])
    (tmp_path / "images" / "notes.txt").write_text("no image")
    found = dense.open_labels(spec, classes=3)
    assert [pathlib.Path(found.name(i)).stem for i in range(3)] == ["b", "c", "b"]
    assert found.classes == ("0", "1", "2")
    for pair in found:
        np.testing.assert_array_equal(pair.image, PHOTO)
        np.testing.assert_array_equal(pair.target, IDS)


def test_missing_partners_are_counted_and_named(tmp_path):
    spec = folders(tmp_path, list("abcde"))
    for name in "bcde":
        (tmp_path / "maps" / f"{name}.png").unlink()
    with pytest.raises(
        ValueError, match=r"4 of 5 images have no map .*: b, c, d, \.\.\."
    ):
        dense.open_labels(spec, classes=3)
    (tmp_path / "images" / "a.png").unlink()
    for name in "bcde":
        (tmp_path / "images" / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 maps have no image .*: a;"):
        dense.open_depth(spec)


def test_classes_are_named_in_a_file_or_counted(tmp_path):
    spec = folders(tmp_path, ["a"])
    with pytest.raises(ValueError, match="does not tell its classes; set classes"):
        dense.open_labels(spec)
    (tmp_path / "maps" / "classes.txt").write_text("sky\nroad, wet\ncar\n")
    assert dense.open_labels(spec).classes == ("sky", "road, wet", "car")
    with pytest.raises(ValueError, match="names 3 classes, but classes=2"):
        dense.open_labels(spec, classes=2)


def test_sizes_that_differ_are_named(tmp_path):
    spec = folders(tmp_path, ["a"])
    Image.fromarray(PHOTO[:3]).save(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"a.png has 3x5 pixels, but .*a.png has 4x5"):
        dense.open_labels(spec, classes=3)[0]
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"a.png cannot be read: these 6 bytes"):
        dense.open_labels(spec, classes=3)[0]


@pytest.mark.parametrize("spec", ["folder:x", "pairs:", "ade20k:/nowhere:training"])
def test_what_names_no_pairs_is_refused(spec):
    with pytest.raises(ValueError, match="known are pairs:|does not exist"):
        dense.open_labels(spec)


def write(path: pathlib.Path, array: np.ndarray) -> None:
    """A picture, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_ade20k_counts_its_classes_from_1(tmp_path):
    write(tmp_path / "images/validation/x.jpg", PHOTO)
    write(tmp_path / "annotations/validation/x.png", IDS)
    found = dense.open_labels(f"ade20k:{tmp_path}:validation")
    assert len(found.classes) == 150
    np.testing.assert_array_equal(found[0].target, IDS.astype(int) - 1)
    lines = [f"{i}\t0.1\t1\t1\tname {i}" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tName", *lines]))
    assert dense.open_labels(f"ade20k:{tmp_path}:validation").classes[1] == "name 2"
    with pytest.raises(ValueError, match=r"must end in :training\|:validation"):
        dense.open_labels(f"ade20k:{tmp_path}:test")


def test_voc_takes_what_its_list_names(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"JPEGImages/{name}.jpg", PHOTO)
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        ids = np.where(IDS == 2, 255, IDS).astype(np.uint8)
        palette(tmp_path / f"SegmentationClass/{name}.png", ids)
    listed = tmp_path / "ImageSets/Segmentation/val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("b\n")
    found = dense.open_labels(f"voc:{tmp_path}:val")
    assert len(found) == 1 and found.classes == layouts.VOC
    assert len(found.classes) == 21
    np.testing.assert_array_equal(
        found[0].target, np.where(IDS == 2, -1, IDS.astype(int))
    )
    listed.write_text("b\nc\n")
    with pytest.raises(
        ValueError, match=r"2 of 4 files in .*val.txt do not exist: .*c.jpg"
    ):
        dense.open_labels(f"voc:{tmp_path}:val")
    with pytest.raises(ValueError, match="needs the list .*train.txt"):
        dense.open_labels(f"voc:{tmp_path}:train")


def test_cityscapes_takes_its_training_ids(tmp_path):
    write(tmp_path / "leftImg8bit/val/town/t_1_leftImg8bit.png", PHOTO)
    for kind in ("labelIds", "labelTrainIds"):
        write(tmp_path / f"gtFine/val/town/t_1_gtFine_{kind}.png", IDS)
    found = dense.open_labels(f"cityscapes:{tmp_path}:val")
    assert len(found) == 1 and len(found.classes) == 19


def test_nyud_reads_its_list(tmp_path):
    write(tmp_path / "room/rgb_1.jpg", PHOTO)
    write(tmp_path / "room/depth_1.png", IDS.astype(np.uint16) * 1000)
    line = "/room/rgb_1.jpg /room/depth_1.png 518.8579\n"
    (tmp_path / "nyu_test.txt").write_text(line + "room/rgb_2.jpg None 518.8\n")
    (tmp_path / "own.txt").write_text(line)
    for split in ("test", "own.txt"):
        found = dense.open_depth(f"nyud:{tmp_path}:{split}")
        assert len(found) == 1
        np.testing.assert_array_equal(found[0].target, IDS)
    (tmp_path / "own.txt").write_text("room/rgb_1.jpg\n")
    with pytest.raises(ValueError, match="it needs two files"):
        dense.open_depth(f"nyud:{tmp_path}:own.txt")


def marked(shape: tuple[int, int], dtype) -> dense.Pair:
    """An image whose red and green tell the row and column, with the same as map."""
    rows, columns = np.indices(shape)
    image = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    target = rows + 0.25 * columns + 1 if dtype == np.float32 else rows // 8
    return dense.Pair(image, target.astype(dtype))


VIEWS = {
    "segmentation": (
        dense_views.SegmentationViews(
            crop=48, side=96, ratio=(1.0, 1.0), recolor=False, most=1.0
        ),
        marked((96, 120), np.int32),
    ),
    "depth": (
        dense_views.DepthViews(crop=(32, 48), degrees=0.0, recolor=0.0),
        marked((96, 120), np.float32),
    ),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_crop_keeps_image_and_map_together(kind):
    views, pair = VIEWS[kind]
    mirrored = set()
    for seed in range(8):
        image, target = views(pair, np.random.default_rng(seed))
        rows, columns = image[..., 0].astype(int), image[..., 1].astype(int)
        want = rows // 8 if kind == "segmentation" else rows + 0.25 * columns + 1
        np.testing.assert_array_equal(target, want)
        assert target.dtype == pair.target.dtype
        mirrored.add(bool(columns[0, 0] > columns[0, 1]))
    assert mirrored == {True, False}


def test_a_crop_beyond_the_image_is_padded_with_what_counts_nowhere():
    pair = marked((40, 60), np.int32)
    views = dense_views.SegmentationViews(crop=64, side=40, ratio=(0.5, 0.5))
    image, labels = views(pair, np.random.default_rng(0))
    assert image.shape == (64, 64, 3) and labels.shape == (64, 64)
    assert (labels[20:] == -1).all() and (labels[:20, 30:] == -1).all()
    assert (labels[:20, :30] >= 0).all()
    assert (image[20:] == dense_views.PADDING).all()
    pair = marked((40, 60), np.float32)
    image, depth = dense_views.DepthViews(crop=(48, 64))(pair, np.random.default_rng(0))
    assert image.shape == (48, 64, 3) and (depth[40:] == 0).all()


def test_a_crop_of_one_class_is_tried_again():
    labels = np.zeros((64, 64), np.int32)
    labels[:, 48:] = 1
    pair = dense.Pair(np.zeros((64, 64, 3), np.uint8), labels)

    def mixed(most: float) -> int:
        views = dense_views.SegmentationViews(
            crop=8, side=64, ratio=(1.0, 1.0), recolor=False, most=most
        )
        made = [views(pair, np.random.default_rng(i)).target for i in range(40)]
        return sum(len(np.unique(labels)) > 1 for labels in made)

    # A crop meets both classes by chance in 7 of 57 places; of ten tries, one in 0.73.
    # That no class may have any share is never met: then the tenth try is as good.
    assert mixed(1.0) > 2 * mixed(0.0)


def test_a_border_is_cut_and_turning_leaves_unknown_corners():
    pair = marked((96, 120), np.float32)
    views = dense_views.DepthViews(
        crop=(80, 80), border=(8, 88, 20, 100), degrees=0.0, flip=0.0, recolor=0.0
    )
    image, _ = views(pair, np.random.default_rng(0))
    np.testing.assert_array_equal(image, pair.image[8:88, 20:100])
    views = dense_views.DepthViews(crop=(96, 120), degrees=10.0, flip=0.0, recolor=0.0)
    found = [views(pair, np.random.default_rng(i)) for i in range(8)]
    turned = [one for one in found if (one.target == 0).any()]
    assert 0 < len(turned) < 8
    for image, depth in turned:
        inner = depth[30:60, 40:80]
        near = image[30:60, 40:80, 0] + 0.25 * image[30:60, 40:80, 1] + 1
        # bilinear pixels, rounded, beside nearest metres: off by half a pixel or one
        assert np.abs(inner - near).max() <= 2


def test_colours_change_and_structure_stays():
    image, _ = densefiles.coins()
    changed = [
        dense_views.recolored(image, np.random.default_rng(i)) for i in range(12)
    ]
    assert any((one != image).any() for one in changed)
    for one in changed:
        assert one.dtype == np.uint8 and one.shape == image.shape
        alike = np.corrcoef(one.mean(2).ravel(), image.mean(2).ravel())[0, 1]
        assert alike > 0.9
    one = dense_views.recolored(image, np.random.default_rng(3))
    np.testing.assert_array_equal(one, changed[3])


def test_a_batch_depends_on_seed_and_step_alone(tmp_path):
    specs = densefiles.coin_folders(tmp_path)
    source = dense.open_labels(specs[0])
    views = dense_views.SegmentationViews(crop=32, side=64)

    def batches(start=0, **options):
        made = dense_batches.train_batches(
            source, views, seed=3, batch_size=4, start=start, stop=3, **options
        )
        return list(made)

    whole = batches()
    assert len(whole) == 3 and whole[0].images.shape == (4, 32, 32, 3)
    for process in range(2):
        for a, b in zip(whole, batches(process=process, processes=2)):
            rows = slice(2 * process, 2 * process + 2)
            np.testing.assert_array_equal(a.images[rows], b.images)
            np.testing.assert_array_equal(a.targets[rows], b.targets)
    np.testing.assert_array_equal(whole[2].targets, batches(2)[0].targets)
    assert (whole[0].images != whole[1].images).any()
    with pytest.raises(ValueError, match="batch_size=4 must be a positive multiple"):
        batches(process=0, processes=3)


def test_validation_pairs_come_in_order_and_in_parts(tmp_path):
    source = dense.open_labels(folders(tmp_path, list("abcdefg")), classes=3)
    ids = [i for i, _ in dense_batches.val_pairs(source)]
    assert ids == list(range(7))
    assert [i for i, _ in dense_batches.val_pairs(source, limit=3)] == [0, 2, 4]
    parts = [
        [i for i, _ in dense_batches.val_pairs(source, process=p, processes=2)]
        for p in range(2)
    ]
    assert parts == [[0, 2, 4, 6], [1, 3, 5]]
