"""The one contract between host and device: what a training step is given."""

import flax.struct
import jax
import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.draws import Draws

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, of values in 0..1
STD = np.array([0.229, 0.224, 0.225], np.float32)


@flax.struct.dataclass
class Batch:
    """Crops and masks of one step; arrays of NumPy on the host, of JAX on devices.

    The crops are uint8, or floating point that is already normalised.
    Differs: rows are image-major, not crop-major as in the reference; that matters
    only for which row gets which mask, and masks are shuffled over all rows anyway.
    """

    global_crops: jax.Array  # [B U H W 3]
    local_crops: jax.Array  # [B V-U h w 3]
    masks: jax.Array  # [B U N] bool, True where the student sees the mask token
    mask_indices: jax.Array  # [G M] int32, into a group's (image, view, patch); pad 0
    mask_weights: jax.Array  # [G M] float32, 1 / masked patches of its crop; pad 0


@flax.struct.dataclass
class Uncropped:
    """What the devices cut the crops of a Batch from."""

    images: jax.Array  # [B C C 3] uint8, each in the upper left corner; 0 beyond
    draws: Draws  # [B V ...] for the true sizes of the images
    masks: jax.Array  # this and the next as in Batch
    mask_indices: jax.Array
    mask_weights: jax.Array

    def cropped(self, global_crops: jax.Array, local_crops: jax.Array) -> Batch:
        """The Batch of crops that were cut from it."""
        masks = (self.masks, self.mask_indices, self.mask_weights)
        return Batch(global_crops, local_crops, *masks)


def normalize(images: jax.Array) -> jax.Array:
    """Images as the networks see them; floating point passes through.

    Args:
        images: [... 3] uint8 RGB, of NumPy or JAX; or already normalised.
    Returns: [... 3] float32, zero mean and unit deviation over ImageNet.
    """
    if images.dtype != np.uint8:
        return images
    return (images.astype(np.float32) / 255 - MEAN) / STD


def pack_masks(
    masks: np.ndarray, views: int, capacity: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batch.masks, mask_indices and mask_weights of the masks of each group.

    Args:
        masks: [G g*U N] bool, rows in the order (image, view).
        views: U, global views of an image.
        capacity: M, the static size of the buffer; see `masks.upper_bound`.
    Returns: [B U N] bool, [G M] int32, [G M] float32.
    Raises: ValueError if a group has more masked patches than `capacity`.
    """
    groups, rows, patches = masks.shape
    if rows % views:
        raise errors.InputError(
            f"{rows} mask rows a group do not divide into {views=}."
        )
    indices = np.zeros((groups, capacity), np.int32)
    weights = np.zeros((groups, capacity), np.float32)
    for group, mask in enumerate(masks):
        flat = np.flatnonzero(mask)
        if len(flat) > capacity:
            raise errors.InputError(
                f"group {group} has {len(flat)} masked patches but {capacity=}; take "
                "the capacity from masks.upper_bound for the same rows and ratio."
            )
        counts = mask.sum(1)
        indices[group, : len(flat)] = flat
        weights[group, : len(flat)] = 1 / counts[flat // patches]
    return masks.reshape(-1, views, patches), indices, weights


def every_patch(
    groups: int, rows: int, views: int, patches: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks that hide nothing while every patch is a target: distillation.

    Args:
        groups: G. rows: g*U, crops of a group. views: U. patches: N of a crop.
    Returns: [B U N] bool all False, [G g*U*N] int32, [G g*U*N] float32 all 1/N.
    Source: arXiv:2304.07193 section 5: no masking, iBOT on both global crops.
    """
    size = rows * patches
    return (
        np.zeros((groups * rows // views, views, patches), bool),
        np.tile(np.arange(size, dtype=np.int32), (groups, 1)),
        np.full((groups, size), 1 / patches, np.float32),
    )
