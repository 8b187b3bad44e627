"""KITTI as its toolbox reads it: the layout, the crop, and what training does to images."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.cli import evaluate_depth, evaluate_depth_kitti
from dinov2_jax.data import dense, dense_views, kitti
from dinov2_jax.evals import depth

SHAPE = (375, 1242)  # pixels of most of its photographs
DAY = "2011_09_26"


def photograph(number: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """An image whose red and green tell the row and the column."""
    rows, columns = np.indices(shape)
    parts = rows % 256, columns % 256, np.full(shape, number)
    return np.stack(parts, -1).astype(np.uint8)


def written(root: pathlib.Path, count: int = 2) -> pathlib.Path:
    """Photographs and maps where KITTI has them, with its list for testing."""
    lines = []
    for i in reversed(range(count)):
        image = f"{DAY}/{DAY}_drive_0002_sync/image_02/data/000000006{i}.png"
        truth = (
            f"{DAY}_drive_0002_sync/proj_depth/groundtruth/image_02/000000006{i}.png"
        )
        rows, columns = np.indices(SHAPE)
        metres = (256 * (1 + rows / 10 + columns / 100)).astype(np.uint16)
        for part, name, pixels in (
            ("input", image, photograph(i)),
            ("gt_depth", truth, metres),
        ):
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / part / name)
        lines.append(f"{image} {truth} 721.5377")
    lines.append(f"{DAY}/nothing/image_02/data/0000000000.png None 721.5377")
    (root / "kitti_eigen_test.txt").write_text("\n".join(lines) + "\n")
    return root


def test_the_layout_and_lists_are_read_as_they_are(tmp_path, capsys):
    spec = f"kitti:{written(tmp_path)}:test"
    found = dense.open_depth(spec, scale=256.0)
    assert [pathlib.Path(x).name for x in found.images] == [
        "0000000060.png",
        "0000000061.png",
    ]
    assert "lines without a map: 1" in capsys.readouterr().err
    image, target = found[1]
    np.testing.assert_array_equal(image, photograph(1))
    assert target[100, 200] == 13
    with pytest.raises(ValueError, match="needs the list .*kitti_eigen_train.txt"):
        dense.open_depth(f"kitti:{tmp_path}:train")
    (tmp_path / "gt_depth").rename(tmp_path / "maps")
    with pytest.raises(ValueError, match="needs the folder .*gt_depth"):
        dense.open_depth(spec)


def test_the_middle_of_the_bottom_is_kept_before_garg_cuts(tmp_path):
    root = written(tmp_path, 1)
    spec = f"kitti:{root}:test"
    (image, target), whole = (
        dense.open_depth(spec, scale=256.0, kb_crop=crop)[0] for crop in (True, False)
    )
    assert image.shape[:2] == target.shape == kitti.SIZE == (352, 1216)
    # 375 - 352 rows from above, int((1242 - 1216) / 2) columns from the left
    np.testing.assert_array_equal(image, whole.image[23:, 13:1229])
    np.testing.assert_array_equal(target, whole.target[23:, 13:1229])
    inside = depth.inside(target.shape, "garg")
    assert inside.any(1).nonzero()[0][[0, -1]].tolist() == [143, 348]
    assert inside.any(0).nonzero()[0][[0, -1]].tolist() == [43, 1171]
    Image.fromarray(photograph(0, (300, 1242))).save(tmp_path / "small.png")
    Image.fromarray(np.ones((300, 1242), np.uint16)).save(tmp_path / "map.png")
    small = dense.Pairs(
        (f"{tmp_path}/small.png",), (f"{tmp_path}/map.png",), dense.read_depth
    )
    for read in (kitti.Cropped(small).target, kitti.Cropped(small).__getitem__):
        with pytest.raises(ValueError, match="small.png has 300x1242 pixels; KITTI's"):
            read(0)


def test_the_settings_are_those_of_the_toolbox():
    s = evaluate_depth_kitti.SETTINGS
    assert s["kb_crop"] and s["crop"] == (352, 704) and s["degrees"] == 2.5
    assert s["brightness"] == (0.9, 1.1) and s["max_depth"] == 80
    assert evaluate_depth.SETTINGS["brightness"] == (0.75, 1.25)
    assert not evaluate_depth.SETTINGS["kb_crop"]


def test_colours_change_by_the_power_of_levels():
    views = dense_views.DepthViews(crop=(4, 5), degrees=0.0, flip=0.0, recolor=1.0)
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    pair = dense.Pair(image, np.ones((4, 5), np.float32))
    for gamma in (0.9, 1.1):
        for factor in (0.95, 1.05):
            one = dense_views.DepthViews(
                crop=(4, 5),
                degrees=0.0,
                flip=0.0,
                recolor=1.0,
                gamma=(gamma, gamma),
                brightness=(factor, factor),
                color=(1.0, 1.0),
            )
            got = one(pair, np.random.default_rng(0)).image
            want = np.clip(image.astype(np.float64) ** gamma * factor, 0, 255)
            np.testing.assert_array_equal(got, want.astype(np.uint8))
    changed = [views(pair, np.random.default_rng(i)).image for i in range(8)]
    assert len({one.tobytes() for one in changed}) == 8
