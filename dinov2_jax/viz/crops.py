"""What the model saw: the crops of a batch and the patches hidden from the student."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinov2_jax import errors

GRAY = 128  # of a masked patch
LEAST = 128  # pixels; smaller global crops are shown enlarged
GAP, MARGIN, HEADER = 6, 16, 26  # pixels: between tiles, around groups, for captions
INK = (75, 82, 92)


def masked(crops: np.ndarray, masks: np.ndarray, patch_size: int) -> np.ndarray:
    """Crops with their masked patches in plain grey.

    Args:
        crops: [B U S S 3] uint8 RGB.
        masks: [B U N] bool, True where the student sees the mask token; row by row.
        patch_size: pixels.
    Returns: [B U S S 3] uint8.
    Raises: ValueError if the masks do not cover the crops.
    """
    crops, masks = np.asarray(crops), np.asarray(masks, bool)
    if crops.ndim != 5 or crops.shape[4] != 3 or crops.dtype != np.uint8:
        raise errors.InputError(
            f"crops of shape {crops.shape} and {crops.dtype} must be [B U S S 3] "
            "uint8; undo the normalisation first."
        )
    grid = (crops.shape[2] // patch_size, crops.shape[3] // patch_size)
    whole = all(side % patch_size == 0 for side in crops.shape[2:4])
    if not whole or masks.shape != (*crops.shape[:2], grid[0] * grid[1]):
        raise errors.InputError(
            f"masks of shape {masks.shape} do not cover crops of shape {crops.shape} "
            f"with {patch_size=}; needs {(*crops.shape[:2], 'S/patch_size squared')}."
        )
    pixels = masks.reshape(*crops.shape[:2], *grid)
    pixels = pixels.repeat(patch_size, axis=2).repeat(patch_size, axis=3)
    return np.where(pixels[..., None], np.uint8(GRAY), crops)


def crops_picture(
    global_crops: np.ndarray,
    local_crops: np.ndarray,
    masks: np.ndarray,
    patch_size: int,
) -> np.ndarray:
    """One row an image: global crops, the same as the student sees them, local crops.

    Args:
        global_crops: [B U S S 3] uint8 RGB.
        local_crops: [B V s s 3] uint8 RGB, s <= S; V may be 0.
        masks: [B U N] bool, True where the student sees the mask token.
        patch_size: pixels.
    Returns: [H W 3] uint8, white between the tiles. All tiles have one scale.
    Raises: ValueError if the shapes do not belong together.
    """
    hidden = masked(global_crops, masks, patch_size)
    local_crops = np.asarray(local_crops)
    shape = local_crops.shape
    if len(shape) != 5 or len(local_crops) != len(hidden) or shape[2] > hidden.shape[2]:
        raise errors.InputError(
            f"local crops of shape {shape} do not belong to global crops of shape "
            f"{hidden.shape}; needs [B V s s 3] with the same B and s <= S."
        )
    scale = -(-LEAST // hidden.shape[2])
    side, small = hidden.shape[2] * scale, shape[2] * scale
    # Local crops stand in as many lines as fit beside one global crop.
    lines = min(side // small, shape[1]) if shape[1] else 1
    share = float(np.asarray(masks, bool).mean())
    groups = [
        (f"{hidden.shape[1]} global crops", global_crops, side, 1),
        (f"student's view, {share:.0%} masked", hidden, side, 1),
    ]
    if shape[1]:
        groups.append((f"{shape[1]} local crops", local_crops, small, lines))
    return _sheet(groups, max(side, lines * (small + GAP) - GAP), scale)


def _sheet(groups: list[tuple], tall: int, scale: int) -> np.ndarray:
    """Groups (caption, [B n s s 3], side in pixels, lines), rows `tall` pixels high."""
    font = ImageFont.load_default(14)
    places, left = [], MARGIN
    for caption, tiles, size, lines in groups:
        columns = -(-tiles.shape[1] // lines)
        places.append((left, columns))
        width = columns * (size + GAP) - GAP
        left += max(width, int(font.getlength(caption))) + MARGIN
    images = len(groups[0][1])
    height = HEADER + MARGIN + images * (tall + MARGIN)
    sheet = Image.new("RGB", (left, height), "white")
    pen = ImageDraw.Draw(sheet)
    for (caption, tiles, size, _), (left, columns) in zip(groups, places):
        pen.text((left, MARGIN), caption, INK, font)
        for row, images in enumerate(np.asarray(tiles)):
            top = HEADER + MARGIN + row * (tall + MARGIN)
            for i, tile in enumerate(images.repeat(scale, 1).repeat(scale, 2)):
                across, down = i % columns, i // columns
                corner = (left + across * (size + GAP), top + down * (size + GAP))
                sheet.paste(Image.fromarray(tile), corner)
    return np.asarray(sheet)
