"""Patch features as colours: the first three principal components as RGB."""

import numpy as np
from PIL import Image

from dinov2_jax import errors

PERCENTILES = (1, 99)  # of a component: black and full colour, so outliers clip
FLAT = 1e-6  # a component this much narrower than the first is rounding noise
GAP = 8  # pixels between tiles


def pca_maps(
    patches: np.ndarray,
    *,
    size: int | tuple[int, int] | None = None,
    components: int = 3,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Principal components of all patches of the batch, as pictures.

    Equal colours mean equal features across images too: there is one PCA, and one
    scale a component, for the whole batch.

    Args:
        patches: [B h w D] floating point, patch features.
        size: side or (height, width) of a map in pixels; None keeps one pixel a patch.
        components: 3 for RGB, or 1 for grey.
        resample: Pillow's filter of the resizing; NEAREST shows the patches.
    Returns: [B H W 3] uint8; a component without spread is 128 everywhere. The sign of
        a component makes its largest loading positive, so results are reproducible.
    Raises: ValueError if the shape, the number of components or a value does not fit.
    Source: arXiv:2304.07193 section 7.5.
    Differs: no foreground is cut out, so the first component is shown too.
    """
    patches = np.asarray(patches)
    if components not in (1, 3):
        raise errors.InputError(f"{components=} must be 3 (RGB) or 1 (grey).")
    if patches.ndim != 4 or 0 in patches.shape or patches.shape[-1] < components:
        raise errors.InputError(
            f"patches of shape {patches.shape} must be [B h w D] with D >= "
            f"{components}; reshape the tokens of each image to its patch grid."
        )
    flat = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    if not np.isfinite(flat).all():
        bad = np.count_nonzero(~np.isfinite(flat))
        raise errors.InputError(f"patches hold {bad} values that are NaN or infinite.")
    colors = _scaled(_projected(flat, components))
    maps = np.broadcast_to(colors, (len(flat), 3)).reshape(*patches.shape[:3], 3)
    if size is None:
        return np.ascontiguousarray(maps)
    height, width = (size, size) if isinstance(size, int) else size
    pictures = [Image.fromarray(m).resize((width, height), resample) for m in maps]
    return np.stack([np.asarray(picture) for picture in pictures])


def pca_picture(
    images: np.ndarray, patches: np.ndarray, *, columns: int = 2, least: int = 192
) -> np.ndarray:
    """Each image beside its PCA map, on a white sheet.

    Args:
        images: [B S S 3] uint8 RGB.
        patches: [B h w D] floating point, features of the same images.
        columns: pairs in a row, >= 1.
        least: pixels; smaller images are shown this large.
    Returns: [H W 3] uint8.
    Raises: ValueError if images and patches do not belong together.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise errors.InputError(
            f"images of shape {images.shape} and {images.dtype} must be [B S S 3] "
            "uint8; undo the normalisation first."
        )
    if len(images) != len(patches):
        raise errors.InputError(
            f"{len(images)} images and patches of {len(patches)} images; pass the "
            "features of the very images that are shown."
        )
    factor = max(1.0, least / images.shape[1])
    height, width = (round(side * factor) for side in images.shape[1:3])
    maps = pca_maps(patches, size=(height, width))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    # The two halves of a pair touch by GAP / 2; pairs are 2 GAP apart.
    pair = 2 * width + GAP // 2
    sheet = np.full(
        (rows * (height + GAP) + GAP, columns * (pair + 2 * GAP), 3), 255, np.uint8
    )
    for i, (image, colors) in enumerate(zip(images, maps)):
        top = GAP + i // columns * (height + GAP)
        left = GAP + i % columns * (pair + 2 * GAP)
        shown = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        sheet[top : top + height, left : left + width] = np.asarray(shown)
        left += width + GAP // 2
        sheet[top : top + height, left : left + width] = colors
    return sheet


def _projected(flat: np.ndarray, components: int) -> np.ndarray:
    """First principal components [n c] of rows [n D], with a fixed sign."""
    flat = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    vectors = vectors[:, ::-1][:, :components]
    largest = np.abs(vectors).argmax(0)
    return flat @ (vectors * np.sign(vectors[largest, np.arange(components)]))


def _scaled(values: np.ndarray) -> np.ndarray:
    """Components [n c] as uint8, each from its low to its high percentile."""
    low, high = np.percentile(values, PERCENTILES, axis=0)
    spread = high - low
    flat = spread <= FLAT * max(spread[0], np.finfo(np.float64).tiny)
    scaled = np.clip((values - low) / np.where(flat, 1.0, spread), 0, 1) * 255
    return np.where(flat, 128, np.round(scaled)).astype(np.uint8)
