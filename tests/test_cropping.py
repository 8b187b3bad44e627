"""Views cut on the devices against those that Pillow and OpenCV cut on the host."""

import pathlib

import jax
import numpy as np
import peers
import pytest
from PIL import Image

import dinov2_jax.data.demo
from dinov2_jax import cropping
from dinov2_jax.data import augment, batch, draws, resizing

PHOTOGRAPHS = sorted(pathlib.Path(dinov2_jax.data.demo.__file__).parent.glob("*.jpg"))
CANVAS = 256
CROP = draws.MultiCrop(global_size=96, local_size=40, local_number=6)


def photographs(number):
    """Real photographs of several shapes, at most as large as the canvas."""
    images = []
    for path in PHOTOGRAPHS[:number]:
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((CANVAS, CANVAS - 10 * len(images)))
        images.append(np.asarray(picture))
    return images


def placed(images):
    """[B C C 3] canvases; what lies beyond an image must not matter."""
    out = np.random.default_rng(9).integers(0, 256, (len(images), CANVAS, CANVAS, 3))
    out = out.astype(np.uint8)
    for canvas, image in zip(out, images):
        canvas[: image.shape[0], : image.shape[1]] = image
    return out


def drawn(images, seed=0):
    """Draws of all images."""
    numbers = np.stack(
        [CROP.numbers(np.random.default_rng([seed, i])) for i in range(len(images))]
    )
    return CROP.draws(numbers, *np.array([image.shape[:2] for image in images]).T)


def host(images, made, resize="pillow"):
    """Global and local views as the host cuts them."""
    views = [
        augment.views(image, draws.Draws(*draw), CROP, resize)
        for image, *draw in zip(images, *made)
    ]
    return [np.stack(x) for x in zip(*views)]


@pytest.fixture(scope="module")
def cut():
    """The views as a device cuts them, compiled once for all tests."""
    views = jax.jit(lambda images, made: cropping.views(images, made, CROP, block=4))
    return lambda images, made: views(placed(images), made)


def errors(got, expected):
    return np.abs(np.asarray(got).astype(int) - expected)


@pytest.mark.parametrize("way", resizing.WAYS)
def test_both_places_make_the_same_views_of_photographs(cut, way):
    if way == "simd":
        peers.package("cykooz_resizer", "simd")
    images = photographs(8)
    made = drawn(images)
    for got, expected in zip(cut(images, made), host(images, made, way), strict=True):
        assert got.dtype == np.uint8
        error = errors(got, expected)
        # Rounding differs by a level here and there; jitter and hue widen it.
        assert error.mean() <= 0.1 and (error <= 6).mean() >= 0.999


PLAIN = {"flip": False, "jitter": False, "gray": False, "sigma": 0, "solarize": False}


@pytest.mark.parametrize(
    ("changed", "most"),
    [
        ({}, 3),  # resampled in fixed point by Pillow, in float32 by us
        ({"flip": True}, 3),
        ({"gray": True}, 3),
        ({"sigma": 1.5}, 3),
        ({"solarize": True}, 3),
    ],
    ids=lambda x: next(iter(x), "crop") if isinstance(x, dict) else "",
)
def test_one_operation_alone_is_the_hosts_but_for_single_levels(cut, changed, most):
    images = photographs(8)
    made = drawn(images)
    values = {
        name: np.full_like(getattr(made, name), value)
        for name, value in (PLAIN | changed).items()
    }
    made = made._replace(**values)
    for got, expected in zip(cut(images, made), host(images, made), strict=True):
        error = errors(got, expected)
        assert error.max() <= most and error.mean() < 0.03


@pytest.mark.parametrize("number", range(4), ids=lambda i: augment.JITTER[i].__name__)
def test_each_jitter_operation_is_the_hosts(number):
    image = photographs(1)[0]
    planes = image.transpose(2, 0, 1).astype(np.float32)
    for factor in ((0.6123, 1, 1.3871), (-0.0991, 0, 0.0713))[number == 3]:
        factors = np.full(4, factor, np.float32)
        got = jax.jit(cropping.jittered)(planes, number, factors).transpose(1, 2, 0)
        error = errors(got, augment.JITTER[number](image, factors[0]))
        # A value beside a whole number may be cut to either side: a multiplication
        # and an addition round once or twice. A hue moves its pixel by up to 6 levels.
        assert (error > 0).mean() < 0.003 and error.max() <= (6 if number == 3 else 1)


def test_other_dtypes_are_normalised():
    image = photographs(1)[0][:48, :48]
    crop = draws.MultiCrop(global_size=16, global_number=1, local_number=0, jitter=0)
    made = crop.draws(crop.numbers(np.random.default_rng(0)), 48, 48)
    batched = draws.Draws(*(x[None] for x in made))
    got, none = jax.jit(
        lambda x, d: cropping.views(x, d, crop, dtype=jax.numpy.bfloat16)
    )(image[None], batched)
    assert got.dtype == none.dtype == jax.numpy.bfloat16 and none.size == 0
    expected = batch.normalize(augment.views(image, made, crop)[0])
    # bfloat16 keeps 8 bits of values up to 2.6; three levels are 0.05.
    np.testing.assert_allclose(got[0].astype(np.float32), expected, atol=0.06)
