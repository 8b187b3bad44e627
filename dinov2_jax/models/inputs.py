"""What a backbone takes: floating-point images, channels last, of whole patches."""

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors


def check(images: jax.Array, axes: str, patch_size: int, channels: int) -> None:
    """Refuse what would give numbers of another meaning, or none.

    Args:
        images: any array.
        axes: the axes expected, `B H W C` or `B V H W C`.
        patch_size: side of a patch, pixels.
        channels: C.
    Raises: ValueError that says what it got, what it needs and what to do.
    """
    rank, expected = len(axes.split()), f"expected [{axes}] with C={channels}"
    if not isinstance(images, jax.Array | np.ndarray):
        kind = f"{type(images).__module__}.{type(images).__name__}"
        raise errors.InputError(
            f"Images are a {kind.removeprefix('builtins.')}; expected an array of JAX or "
            "NumPy: give np.asarray(images)."
        )
    shape = tuple(images.shape)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise errors.InputError(
            f"Images are of type {images.dtype}; expected floating point, normalised: "
            "dinov2_jax.data.batch.normalize turns uint8 RGB into it."
        )
    if len(shape) == rank - 1 and channels in (shape[-1], shape[-3]):
        raise errors.InputError(
            f"Images of shape {shape} lack the batch axis; {expected}: give images[None]"
            f"{', with the channels last' if shape[-1] != channels else ''}."
        )
    if len(shape) != rank:
        raise errors.InputError(
            f"Images of shape {shape} have {len(shape)} axes; {expected}."
        )
    if rank == 4 and shape[0] == 0:
        raise errors.InputError(f"Images of shape {shape} are none; give one or more.")
    height, width, last = shape[-3:]
    if last != channels and height == channels:
        order = (*range(rank - 3), rank - 2, rank - 1, rank - 3)
        raise errors.InputError(
            f"Images of shape {shape} have their channels first; {expected}: give "
            f"images.transpose{order}."
        )
    if last != channels:
        raise errors.InputError(
            f"Images of shape {shape} have {last} channels, the model takes {channels}; "
            f"{expected}."
        )
    if height % patch_size or width % patch_size or not height or not width:
        raise errors.InputError(
            f"Images of {height}x{width} pixels (H x W of shape {shape}) are not a "
            f"multiple of the patch size {patch_size}; resize or crop them to one."
        )


def patches(images: jax.Array, side: int) -> jax.Array:
    """[B V H W C] -> flattened patches [B V N p*p*C], a patch as (y, x, channel)."""
    b, v, height, width, channels = images.shape
    rows, columns = height // side, width // side
    cut = images.reshape(b, v, rows, side, columns, side, channels)
    return cut.swapaxes(3, 4).reshape(b, v, rows * columns, -1)
