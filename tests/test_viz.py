"""Pictures: PCA maps, crops and curves."""

import io
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.viz import crops, curves, history, pca, summary


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def clusters():
    """[2 6 6 8] patches at three far corners, and [2 6 6] which corner each is at."""
    corner = np.arange(72).reshape(2, 6, 6) % 3
    # Unequal distances: the order of the components does not hang on rounding.
    return np.diag([9, 6, 3, 0, 0, 0, 0, 0]).astype(np.float32)[corner], corner


def size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG, read whole."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


def test_pca_of_three_clusters_has_three_colours(clusters):
    patches, corner = clusters
    maps = pca.pca_maps(patches)
    assert maps.shape == (2, 6, 6, 3) and maps.dtype == np.uint8
    colours = [np.unique(maps[corner == i], axis=0) for i in range(3)]
    assert [len(found) for found in colours] == [1, 1, 1]
    for one, other in itertools.combinations(colours, 2):
        assert np.abs(one - other.astype(int)).max() > 100
    # Three points span a plane: the third component is rounding noise, so mid-grey.
    assert (maps[..., 2] == 128).all()


def test_pca_does_not_depend_on_the_order_of_the_features_or_their_offset(rng):
    patches = rng.normal(size=(2, 5, 4, 6)) * [6, 4, 2, 0.1, 0.1, 0.1]
    maps = pca.pca_maps(patches)
    np.testing.assert_array_equal(maps, pca.pca_maps(patches.copy()))
    moved = pca.pca_maps(patches[..., ::-1] + 7).astype(int)
    # A unit: eigh of the permuted matrix rounds differently.
    np.testing.assert_allclose(moved, maps, atol=1)


def test_the_first_channel_is_the_direction_of_largest_variance(rng):
    patches = rng.normal(size=(1, 8, 8, 5)) * [0.1, 9, 1, 0.1, 0.1]
    red = pca.pca_maps(patches)[..., 0].astype(float)
    # The sign is fixed by the largest loading, which belongs to feature 1.
    assert np.corrcoef(red.ravel(), patches[..., 1].ravel())[0, 1] > 0.95


def test_pca_maps_are_resized_and_grey_on_request(clusters):
    patches, _ = clusters
    assert pca.pca_maps(patches, size=30).shape == (2, 30, 30, 3)
    sharp = pca.pca_maps(patches, size=(12, 18), resample=Image.Resampling.NEAREST)
    np.testing.assert_array_equal(
        sharp, pca.pca_maps(patches).repeat(2, 1).repeat(3, 2)
    )
    grey = pca.pca_maps(patches, components=1)
    assert (grey == grey[..., :1]).all() and len(np.unique(grey)) > 1


@pytest.mark.parametrize(
    ("shape", "says"), [((2, 4, 4), "B h w D"), ((1, 4, 4, 2), "D >= 3")]
)
def test_pca_says_which_shape_it_needs(shape, says):
    with pytest.raises(ValueError, match=says):
        pca.pca_maps(np.zeros(shape, np.float32))


def test_pca_refuses_values_that_are_not_finite(clusters):
    patches, _ = clusters
    patches[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 values"):
        pca.pca_maps(patches)


def test_constant_patches_are_grey():
    assert (pca.pca_maps(np.ones((1, 3, 3, 4), np.float32)) == 128).all()


def test_pca_picture_shows_each_image_beside_its_map(clusters, rng):
    patches, _ = clusters
    images = rng.integers(0, 255, (2, 48, 48, 3), np.uint8)
    sheet = pca.pca_picture(images, patches, columns=1, least=48)
    maps = pca.pca_maps(patches, size=48)
    for i in range(2):
        top = pca.GAP + i * (48 + pca.GAP)
        rows = sheet[top : top + 48]
        np.testing.assert_array_equal(rows[:, pca.GAP : pca.GAP + 48], images[i])
        left = pca.GAP + 48 + pca.GAP // 2
        np.testing.assert_array_equal(rows[:, left : left + 48], maps[i])
    with pytest.raises(ValueError, match="very images"):
        pca.pca_picture(images[:1], patches)
    with pytest.raises(ValueError, match="normalisation"):
        pca.pca_picture(images.astype(np.float32), patches)


def test_masked_patches_are_grey_and_all_others_untouched(rng):
    views = rng.integers(0, 100, (2, 2, 12, 12, 3), np.uint8)
    masks = np.zeros((2, 2, 9), bool)
    masks[0, 1, [1, 8]] = True  # row 0 column 1, and row 2 column 2
    shown = crops.masked(views, masks, 4)
    hidden = (shown == crops.GRAY).all(-1)
    assert hidden[0, 1, :4, 4:8].all() and hidden[0, 1, 8:, 8:].all()
    assert hidden.sum() == 2 * 16
    np.testing.assert_array_equal(shown[~hidden], views[~hidden])


def test_crops_picture_holds_every_crop_and_the_masked_share(rng):
    views = rng.integers(0, 100, (2, 2, 128, 128, 3), np.uint8)
    local = rng.integers(150, 250, (2, 5, 64, 64, 3), np.uint8)
    masks = rng.random((2, 2, 64)) < 0.3
    sheet = crops.crops_picture(views, local, masks, 16)
    # Caption ink is dark and white is 255: neither is in the range of the local crops.
    bright = ((sheet >= 150) & (sheet < 250)).all(-1)
    assert bright.sum() >= local.size // 3
    # Anti-aliased letters are never plain mid-grey in as many pixels as a patch.
    grey = (sheet == crops.GRAY).all(-1).sum() - masks.sum() * 16**2
    assert 0 <= grey < 16**2
    top, left = crops.HEADER + crops.MARGIN, crops.MARGIN
    np.testing.assert_array_equal(
        sheet[top : top + 128, left : left + 128], views[0, 0]
    )


def test_small_crops_are_enlarged_and_local_crops_may_be_missing(rng):
    views = rng.integers(0, 255, (1, 2, 32, 32, 3), np.uint8)
    masks = np.zeros((1, 2, 16), bool)
    sheet = crops.crops_picture(views, np.zeros((1, 0, 0, 0, 3), np.uint8), masks, 8)
    assert sheet.shape[0] >= crops.LEAST
    assert sheet.shape[1] >= 4 * crops.LEAST


def test_crops_that_do_not_belong_together_are_refused(rng):
    views = np.zeros((1, 2, 32, 32, 3), np.uint8)
    local = np.zeros((1, 2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="do not cover"):
        crops.crops_picture(views, local, np.zeros((1, 2, 9), bool), 8)
    with pytest.raises(ValueError, match="do not belong"):
        crops.crops_picture(views, np.repeat(local, 2, 0), np.zeros((1, 2, 16)), 8)


def test_series_takes_the_later_line_of_a_step_and_keeps_gaps():
    lines = [
        {"step": 2, "loss/total": 5.0},
        {"step": 1, "loss/total": None, "note": "resumed"},
        {"step": 2, "loss/total": 4.0},
        {"step": 3},
    ]
    steps, values = history.series(lines, "loss/total")
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(values, [np.nan, 4.0])
    assert len(history.series(lines, "note")[0]) == 0
    assert history.last(lines, "loss/total") == 4.0


def test_curves_are_one_figure_a_group_in_a_fixed_order():
    lines = [{"step": 0, "knn/top1": 0.2, "knn/raw_pixels_top1": 0.5}]
    lines += [
        {"step": i, "zebra/x": i, "loss/total": 1.0 / i, "sched/lr": 1e-3, "epoch": 0}
        for i in range(1, 200)
    ]
    figures = curves.curves({"run": lines}, dpi=40)
    assert list(figures) == ["loss", "knn", "sched", "other", "zebra"]
    assert {size(png)[0] for png in figures.values()} == {400}
    assert figures == curves.curves({"run": lines}, dpi=40)
    assert curves.curves({"run": []}) == {}


def test_runs_overlay_and_values_that_are_not_finite_are_drawn(monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        curves.panels,
        "draw",
        lambda ax, key, lines, draw=curves.panels.draw: (
            draw(ax, key, lines),
            drawn.update({key: ax}),
        ),
    )
    one = [{"step": i, "loss/dino_local": 4.0, "loss/dino_global": 1} for i in range(9)]
    one[5]["loss/dino_local"] = math.nan
    level = {"health/log_prototypes_dino": 6.0}
    figures = curves.curves({"a": [one[0] | level, *one[1:]], "b": one}, dpi=40)
    assert list(figures) == ["loss"]  # ln K is a level, not a metric to look at
    panel = drawn["loss/dino"]
    assert panel.get_title("left") == "DINO, global + local (2 not finite)"
    values = panel.lines[0].get_ydata()
    assert np.isnan(values[5]) and np.nanmax(values) == 5.0
    heights = [
        line.get_ydata()[0] for line in panel.lines if len(line.get_ydata()) == 2
    ]
    assert 6.0 in heights
    assert [note.get_text() for note in panel.texts].count("ln K") == 1


def test_only_norms_of_a_wide_range_get_a_logarithmic_axis():
    from matplotlib import figure

    steps = np.arange(3)
    scales = {}
    for key, last in (("grad_norm/a", 2.0), ("grad_norm/b", 1e3), ("loss/c", 1e3)):
        ax = figure.Figure().add_subplot()
        line = curves.panels.Line("red", steps, np.array([1.0, 2.0, last]), [])
        curves.panels.draw(ax, key, [line])
        scales[key] = ax.get_yscale()
    assert list(scales.values()) == ["linear", "log", "linear"]


def test_a_history_without_steps_is_refused():
    with pytest.raises(ValueError, match="lacks `step`"):
        curves.curves({"run": [{"loss/total": 1.0}]})


def run(tmp_path, *lines):
    """A Run of lines that were read."""
    (tmp_path / "metrics.jsonl").touch()
    return history.Run("run", tmp_path, list(lines), [], {}, {}, [])


START = {"step": 0, "knn/top1": 0.3, "knn/raw_pixels_top1": 0.4}
LOSS = {"loss/dino_local": 3.0, "loss/dino_global": 1.0}


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ({"knn/top1": 0.5, "health/log_prototypes_dino": 6.0}, "yes"),
        ({"knn/top1": 0.5, "health/log_prototypes_dino": 4.01}, "partly"),
        ({"knn/top1": 0.35}, "partly"),
        ({"knn/top1": 0.29}, "no"),
        ({}, "not known yet"),
    ],
)
def test_the_verdict_needs_knn_above_the_baselines_and_loss_below_ln_k(
    tmp_path, line, answer
):
    found = summary.summary(run(tmp_path, START, {"step": 9} | LOSS | line))
    assert summary.verdict(found)[0] == answer
    assert found.dino == 4.0 and found.untrained == 0.3 and found.step == 9


def test_a_falling_knn_is_not_a_yes(tmp_path):
    middle, last = {"step": 5, "knn/top1": 0.6}, {"step": 9, "knn/top1": 0.5}
    answer, why = summary.verdict(summary.summary(run(tmp_path, START, middle, last)))
    assert answer == "partly"
    assert "60.0 % at step 5" in " ".join(why)


def test_names_with_signs_of_formulas_are_plain_text():
    lines = [{"step": i, "x$_^/$y{": float(i)} for i in range(3)]
    assert list(curves.curves({"_a$": lines, "$b_{": lines}, dpi=40)) == ["x$_^"]


def test_importing_the_room_loads_neither_jax_nor_matplotlib():
    code = (
        "import sys; from dinov2_jax.viz import crops, curves, pca, report;"
        "print(sorted({'jax', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
