"""The multi-crop augmentation: shapes, ranges, determinism, and each switch."""

import dataclasses
import itertools
import pathlib
import sys
import types

import numpy as np
import peers
import pytest
from PIL import Image

import dinov2_jax.data.demo
from dinov2_jax.data import augment, draws, hue, resizing

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
SMALL = draws.MultiCrop(global_size=32, local_size=16, local_number=3)


def rng(seed=0):
    return np.random.default_rng(seed)


def drawn(crop, seed=0, size=IMAGE.shape[:2]):
    return crop.draws(crop.numbers(rng(seed)), *size)


def views(crop, seed=0, image=IMAGE):
    return augment.views(image, drawn(crop, seed, image.shape[:2]), crop)


@pytest.mark.parametrize(("number", "local"), [(2, 8), (1, 0), (3, 2)])
def test_views_have_the_asked_numbers_and_sizes(number, local):
    crop = dataclasses.replace(SMALL, global_number=number, local_number=local)
    global_views, local_views = views(crop)
    assert global_views.shape == (number, 32, 32, 3)
    assert local_views.shape == (local, 16, 16, 3)
    assert global_views.dtype == local_views.dtype == np.uint8


def test_the_same_generator_state_gives_the_same_views():
    first, again, other = (views(SMALL, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_views_are_what_their_draws_say():
    global_views, local_views = views(SMALL, 5)
    cut = resizing.pillow(IMAGE)
    for made, *draw in zip((*global_views, *local_views), *drawn(SMALL, 5)):
        expected = augment.view(cut, draws.Draws(*draw), len(made), 128)
        np.testing.assert_array_equal(expected, made)


def test_draws_of_many_images_are_those_of_each():
    numbers = np.stack([SMALL.numbers(rng(seed)) for seed in range(6)])
    sizes = np.random.default_rng(1).integers(1, 300, (2, 6))
    together = SMALL.draws(numbers, *sizes)
    for i, (height, width) in enumerate(sizes.T):
        alone = SMALL.draws(numbers[i], height, width)
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(many[i], one)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 999), (40, 40)])
def test_boxes_lie_inside_images_of_any_shape(size):
    for seed in range(50):
        for top, left, height, width in drawn(SMALL, seed, size).box:
            assert min(top, left) >= 0 and min(height, width) >= 1
            assert top + height <= size[0] and left + width <= size[1]
    black, _ = views(SMALL, image=np.zeros((*size, 3), np.uint8))
    assert not black[0].any() or size == (1, 1)


def test_a_hopeless_aspect_falls_back_to_the_central_crop():
    numbers, settings = rng().random((10, 4)), ((0.9, 1.0), (3 / 4, 4 / 3))
    assert draws.boxes(numbers, 10, 1000, *settings).tolist() == [0, 493, 10, 13]
    assert draws.boxes(numbers, 1000, 9, *settings).tolist() == [494, 0, 12, 9]


def test_kinds_of_views_use_their_own_probabilities():
    crop = dataclasses.replace(
        SMALL, global_number=3, blur=(0.0, 1.0, 0.0), solarize=(1.0, 0.0, 1.0)
    )
    made = drawn(crop)
    assert (made.sigma > 0).tolist() == [False, True, True, *[False] * 3]
    assert made.solarize.tolist() == [True, False, False, *[True] * 3]


def test_without_any_chance_a_view_is_only_a_crop():
    crop = dataclasses.replace(
        SMALL, flip=0.0, jitter=0.0, gray=0.0, blur=(0.0,) * 3, solarize=(0.0,) * 3
    )
    box = drawn(crop, 2).box[0]
    plain = resizing.pillow(IMAGE)(box, 32)
    np.testing.assert_array_equal(views(crop, 2)[0][0], plain)


def test_gray_is_pillows_of_every_kind_of_colour():
    colors = rng().integers(0, 256, (1000, 1000, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(colors).convert("L"))
    np.testing.assert_array_equal(augment.grayscale(colors)[..., 0], expected)


def test_simd_cuts_what_pillow_cuts():
    peers.package("cykooz_resizer", "simd")
    path = pathlib.Path(dinov2_jax.data.demo.__file__).with_name("coffee.jpg")
    image = np.asarray(Image.open(path).convert("RGB"))
    ours, theirs = resizing.simd(image), resizing.pillow(image)
    sides = np.random.default_rng(0).integers(20, min(image.shape[:2]), (20, 2))
    for size, (height, width) in itertools.product((98, 224), np.sort(sides, axis=1)):
        box = (7, 11, height, width)  # wide boxes: Pillow, too, takes rows first
        error = np.abs(ours(box, size).astype(int) - theirs(box, size))
        assert error.max() <= 2 and error.mean() < 0.02, (box, size)


def test_neutral_factors_change_nothing():
    for operation in (augment.brightness, augment.contrast, augment.saturation):
        np.testing.assert_array_equal(operation(IMAGE, 1.0), IMAGE)
    gray = augment.grayscale(IMAGE)
    np.testing.assert_array_equal(hue.turned(gray, 0.07), gray)


@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.071])
def test_hue_is_pillows_for_colours_of_every_kind(shift):
    # Every eighth value and the ends of each channel, and random ones.
    levels = np.array([*range(0, 256, 8), 1, 254, 255], np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    some = rng().integers(0, 256, (100_000, 3)).astype(np.uint8)
    for colors in (grid.reshape(1, -1, 3), some[None]):
        hsv = np.array(Image.fromarray(colors).convert("HSV"))
        hsv[..., 0] += np.uint8(int(255 * shift) % 256)
        expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
        np.testing.assert_array_equal(hue.turned(colors, shift), expected)


@pytest.mark.torch
def test_operations_agree_with_torchvision(monkeypatch):
    # Beside a CPU build of torch its compiled operators, unused here, do not load.
    name = "torchvision._meta_registrations"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    functional = pytest.importorskip(
        "torchvision.transforms.functional", reason="needs torch and torchvision"
    )
    picture = Image.fromarray(IMAGE)
    for ours, theirs, values in [
        (augment.brightness, functional.adjust_brightness, (0.6, 1.0, 1.4)),
        (augment.contrast, functional.adjust_contrast, (0.6, 1.0, 1.4)),
        (augment.saturation, functional.adjust_saturation, (0.8, 1.0, 1.2)),
        (hue.turned, functional.adjust_hue, (-0.1, -0.003, 0.0, 0.003, 0.1)),
    ]:
        for value in values:
            expected = np.asarray(theirs(picture, value))
            np.testing.assert_array_equal(ours(IMAGE, value), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"blur": (0.0, -0.1, 0.5)},
        {"hue": 0.6},
        {"global_scale": (0.0, 1.0)},
        {"local_scale": (0.3, 0.1)},
        {"global_number": 0},
        {"local_number": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        draws.MultiCrop(**wrong)
