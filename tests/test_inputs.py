"""Images that a backbone refuses, each with what it got and what it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models import vit

MODEL = vit.ViT(width=8, depth=2, heads=2, patch_size=4, image_size=8)

WRONG = {
    "uint8": (np.zeros((1, 8, 8, 3), np.uint8), r"type uint8; .*batch\.normalize"),
    "int32": (np.zeros((1, 8, 8, 3), np.int32), "type int32; expected floating point"),
    "bool": (np.zeros((1, 8, 8, 3), bool), "type bool"),
    "channels first": (
        np.zeros((2, 3, 8, 8)),
        r"\(2, 3, 8, 8\) have their channels first; .*transpose\(0, 2, 3, 1\)",
    ),
    "no batch": (np.zeros((8, 8, 3)), r"lack the batch axis; .*give images\[None\]\."),
    "neither": (
        np.zeros((3, 8, 8)),
        r"lack the batch axis; .*images\[None\], with the channels last",
    ),
    "video": (np.zeros((2, 5, 8, 8, 3)), r"have 5 axes; expected \[B H W C\]"),
    "gray": (np.zeros((2, 8, 8, 1)), "have 1 channels, the model takes 3"),
    "odd size": (
        np.zeros((2, 8, 10, 3)),
        "8x10 pixels .* multiple of the patch size 4",
    ),
    "empty": (np.zeros((2, 0, 8, 3)), "0x8 pixels"),
    "no images": (np.zeros((0, 8, 8, 3)), r"\(0, 8, 8, 3\) are none; give one or more"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("method", ["__call__", "intermediate"])
def test_images_that_mean_something_else_are_refused(kind, method):
    images, words = WRONG[kind]
    images = images.astype(np.float32) if images.dtype == np.float64 else images
    params = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda p, x: MODEL.apply(p, x, method=method), params, images)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_floating_point_of_any_width_is_taken(dtype):
    images = jax.ShapeDtypeStruct((1, 8, 12, 3), dtype)
    found = jax.eval_shape(MODEL.init_with_output, jax.random.key(0), images)[0]
    assert found.patches.shape == (1, 6, 8)


@pytest.mark.parametrize("method", ["__call__", "intermediate"])
def test_what_is_no_array_is_refused_by_its_type(method):
    images = np.zeros((1, 8, 8, 3), np.float32)
    params = MODEL.init(jax.random.key(0), images)
    with pytest.raises(ValueError, match=r"are a list; .*give np\.asarray\(images\)"):
        MODEL.apply(params, images.tolist(), method=method)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (0, "blocks=0 names none; .* the model has 2 blocks, 0 to 1"),
        (-1, "blocks=-1 names none"),
        ([], r"blocks=\[\] names none; give how many"),
        ([-1], "1 do not exist"),
    ],
)
def test_numbers_of_blocks_that_name_none_are_refused(blocks, words):
    images = np.zeros((1, 8, 8, 3), np.float32)
    params = MODEL.init(jax.random.key(0), images)
    with pytest.raises(ValueError, match=words):
        MODEL.apply(params, images, blocks, method="intermediate")


def test_a_number_of_blocks_beyond_the_model_is_told_shortly():
    images = jnp.zeros((1, 8, 8, 3))
    params = MODEL.init(jax.random.key(0), images)
    for blocks in (99, range(99)):
        words = "97 do not exist; .* 2 blocks, 0 to 1"
        with pytest.raises(ValueError, match=words) as error:
            MODEL.apply(params, images, blocks, method="intermediate")
        assert len(str(error.value).splitlines()[0]) < 120
