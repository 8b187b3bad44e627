"""The views of many images on the devices: what augment does, as array functions.

An image is worked on as [3 H W] whole numbers 0..255, rounded or cut to them where
Pillow and OpenCV round or cut, so that both places make the same views. Between two
operations they are bfloat16, which holds them exactly in half of the memory's traffic.

Source: as augment; the resampling is Pillow's: Keys' cubic (a = -1/2), widened by the
scale, the horizontal pass first, whole numbers between the passes.
Differs: arithmetic in float32 instead of fixed point and double, so that about one
value in a hundred is off by a level, and a hue now and then by a step of its 255.
"""

import jax
import jax.numpy as jnp

from dinov2_jax.data import batch
from dinov2_jax.data.draws import KERNEL, Draws, MultiCrop


def views(
    images: jax.Array,
    draws: Draws,
    multicrop: MultiCrop,
    *,
    block: int = 8,
    dtype: jnp.dtype = jnp.uint8,
) -> tuple[jax.Array, jax.Array]:
    """All views of a batch; shapes depend on the canvas, not on the images on it.

    Args:
        images: [B C C 3] uint8, each in the upper left corner of a canvas.
        draws: [B V ...] for the true sizes of the images.
        multicrop: what the draws were made for.
        block: images worked on at a time, at least 1; each needs about 14 MiB of
            working memory at 2 x 224 and 8 x 98 pixels.
        dtype: of the views; other than uint8 they are normalised.
    Returns: [B U S S 3] global views, [B V-U s s 3] local views.
    """
    number, threshold = multicrop.global_number, multicrop.solarize_threshold

    def cut(size: int, some: Draws) -> jax.Array:
        if not some.flip.shape[1]:
            return jnp.zeros((len(images), 0, size, size, 3), dtype)

        def of_one(one: tuple[jax.Array, Draws]) -> jax.Array:
            image = one[0].transpose(2, 0, 1).astype(jnp.bfloat16)  # exact: 8 bits
            return jax.vmap(lambda draw: _view(image, draw, size, threshold))(one[1])

        made = jax.lax.map(of_one, (images, some), batch_size=min(block, len(images)))
        made = made.transpose(0, 1, 3, 4, 2).astype(jnp.uint8)
        return made if dtype == jnp.uint8 else batch.normalize(made).astype(dtype)

    return (
        cut(multicrop.global_size, Draws(*(x[:, :number] for x in draws))),
        cut(multicrop.local_size, Draws(*(x[:, number:] for x in draws))),
    )


def _view(image: jax.Array, draw: Draws, size: int, threshold: int) -> jax.Array:
    """[3 S S]: one view of an image [3 C C], as augment.view."""
    x = _resized_crop(image, draw.box, size)
    x = jnp.where(draw.flip, x[..., ::-1], x)
    for place in range(4):
        x = jnp.where(draw.jitter, jittered(x, draw.order[place], draw.factors), x)
    x = jnp.where(draw.gray, _gray(x), x)
    x = jnp.where(draw.sigma > 0, _blurred(x, draw.sigma), x)
    return jnp.where(draw.solarize & (x >= threshold), 255 - x, x)


def _whole(x: jax.Array) -> jax.Array:
    """Values that are whole but for their range, as they are kept."""
    return jnp.clip(x, 0, 255).astype(jnp.bfloat16)


def _resized_crop(image: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """[3 S S]: a box of an image [3 C C], antialiased bicubic."""
    top, left, height, width = box
    across = _weights(left, width, image.shape[2], size)
    down = _weights(top, height, image.shape[1], size)
    y = _product("pw,chw->chp", across, image)
    return _product("oh,chp->cop", down, y)


def _weights(start: jax.Array, length: jax.Array, inputs: int, outputs: int):
    """[outputs inputs]: Pillow's weights of the input pixels within a box."""
    scale = length / outputs
    place = jnp.arange(inputs) - start
    center = (jnp.arange(outputs) + 0.5) * scale
    x = jnp.abs(place + 0.5 - center[:, None]) / jnp.maximum(scale, 1)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = jnp.where(x < 1, near, jnp.where(x < 2, far, 0))
    weights = jnp.where((place >= 0) & (place < length), weights, 0)
    return weights / weights.sum(1, keepdims=True)


def _product(equation: str, weights: jax.Array, image: jax.Array) -> jax.Array:
    """Whole numbers 0..255: rounded products of weights and such numbers.

    Weights in two parts of bfloat16 keep 16 bits, which errs by 0.004 of a level: two
    passes of a matrix unit instead of six.
    """
    high = weights.astype(jnp.bfloat16)
    low = (weights - high).astype(jnp.bfloat16)
    parts = (
        jnp.einsum(equation, part, image, preferred_element_type=jnp.float32)
        for part in (high, low)
    )
    return _whole(jnp.floor(sum(parts) + 0.5))


def jittered(x: jax.Array, step: jax.Array, factors: jax.Array) -> jax.Array:
    """[3 S S]: one of brightness, contrast, saturation and hue, by its number.

    The first three blend with another image: black, the mean gray, the grayscale.
    """
    gray, pixels = _gray(x), x.shape[-2] * x.shape[-1]
    mean = (2 * gray.astype(jnp.int32).sum() + pixels) // (2 * pixels)
    mean = jnp.where(step == 1, mean, 0).astype(jnp.float32)
    base = jnp.where(step == 2, gray.astype(jnp.float32), mean)
    values = x.astype(jnp.float32)
    blend = jnp.floor(jnp.clip((values - base) * factors[step] + base, 0, 255))
    return _whole(jnp.where(step == 3, _hue(values, factors[3]), blend))


def _gray(x: jax.Array) -> jax.Array:
    """[1 S S]: luma with Pillow's 16-bit weights and rounding."""
    red, green, blue = x.astype(jnp.int32)
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return luma[None].astype(x.dtype)


def _hue(x: jax.Array, shift: jax.Array) -> jax.Array:
    """[3 S S] of float32: hue turned by a share of the circle, in Pillow's 8-bit HSV."""
    value, span = x.max(0), x.max(0) - x.min(0)
    r, g, b = (value - x) / jnp.maximum(span, 1)
    red, green = x[:2]
    sixth = jnp.where(
        red == value, b - g, jnp.where(green == value, 2 + r - b, 4 + g - r)
    )
    hue = jnp.floor(jnp.mod(sixth / 6 + 1, 1) * 255)
    saturation = jnp.floor(span / jnp.maximum(value, 1) * 255)
    hue = jnp.where(span > 0, hue, 0) + jnp.trunc(255 * shift)
    hue = jnp.mod(hue, 256) * (6 / 255)
    part, s = hue - jnp.floor(hue), saturation / 255
    p, q, t = (
        jnp.floor(value * (1 - s * share) + 0.5) for share in (1.0, part, 1 - part)
    )
    # Red, green and blue of each sixth of the circle.
    sixths = (
        (value, t, p),
        (q, value, p),
        (p, value, t),
        (p, q, value),
        (t, p, value),
        (value, p, q),
    )
    which = jnp.mod(jnp.floor(hue), 6).astype(jnp.int32)
    return jnp.stack([jax.lax.select_n(which, *channel) for channel in zip(*sixths)])


def _blurred(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """[3 S S]: Gaussian blur, border pixels not repeated."""
    far = KERNEL // 2
    offsets = jnp.arange(-far, far + 1)
    kernel = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
    kernel = kernel / kernel.sum()
    x = x.astype(jnp.float32)
    for axis in (2, 1):
        padding = [(far, far) if i == axis else (0, 0) for i in range(3)]
        padded = jnp.pad(x, padding, mode="reflect")
        length = x.shape[axis]
        x = sum(
            kernel[i] * jax.lax.slice_in_dim(padded, i, i + length, axis=axis)
            for i in range(KERNEL)
        )
    return _whole(jnp.round(x))
