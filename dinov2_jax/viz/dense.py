"""Predictions for every pixel beside the truth: classes as colours, depth as heat."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinov2_jax import errors

TALL = 192  # pixels, height of a picture
GAP, HEADER = 8, 26  # pixels
INK = (75, 82, 92)
BLEND = 0.65  # share of a class's colour over the photograph
UNKNOWN = 24  # gray level of pixels without a truth


def colors(classes: int) -> np.ndarray:
    """[classes 3] uint8, far apart and the same every time: those of PASCAL VOC."""
    found = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            one = (np.arange(classes) >> (3 * bit + channel)) & 1
            found[:, channel] |= (one << (7 - bit)).astype(np.uint8)
    return found


def painted(image: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """A photograph with the colours of its classes over it.

    Args:
        image: [H W 3] uint8.
        labels: [H W] int, 0..classes-1; others are dark.
        classes: number of classes.
    Returns: [H W 3] uint8.
    """
    known = (labels >= 0) & (labels < classes)
    over = colors(classes)[np.where(known, labels, 0)]
    mixed = BLEND * over + (1 - BLEND) * image
    return np.where(known[..., None], mixed, UNKNOWN).astype(np.uint8)


def heat(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """[H W 3] uint8 of [H W] metres: near is light; 0 is unknown and dark gray."""
    import matplotlib

    share = np.clip((depth - low) / max(high - low, 1e-9), 0, 1)
    found = matplotlib.colormaps["magma"](1 - share)[..., :3] * 255
    return np.where((depth > 0)[..., None], found, UNKNOWN).astype(np.uint8)


def segmentation_picture(
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    classes: int,
) -> np.ndarray:
    """One row an image: photograph, truth, prediction.

    Args:
        images: [H W 3] uint8, of any sizes.
        truth: [H W] int labels, -1 ignored.
        predicted: [H W] int labels.
        classes: number of classes.
    Returns: [H W 3] uint8.
    Raises: ValueError if the sizes of a row differ.
    """
    _check(images, truth, predicted)
    rows = [
        (image, *(painted(image, labels, classes) for labels in pair))
        for image, *pair in zip(images, truth, predicted)
    ]
    return _sheet(("photograph", "truth", "prediction"), rows)


def depth_picture(
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
) -> np.ndarray:
    """One row an image: photograph, true depth, predicted depth on the same scale.

    Args:
        images: [H W 3] uint8, of any sizes.
        truth: [H W] metres, 0 where unknown.
        predicted: [H W] metres.
    Returns: [H W 3] uint8; a row's scale runs from its nearest to its farthest truth.
    Raises: ValueError if the sizes of a row differ.
    """
    _check(images, truth, predicted)
    rows = []
    for image, *pair in zip(images, truth, predicted):
        known = pair[0][pair[0] > 0] if (pair[0] > 0).any() else np.ones(1)
        ends = np.percentile(known, (1, 99))
        rows.append((image, *(heat(depth, *ends) for depth in pair)))
    return _sheet(("photograph", "true depth", "predicted depth"), rows)


def _check(*columns: Sequence[np.ndarray]) -> None:
    """Raises ValueError if there is no row, or pictures of one differ in size."""
    sizes = [{x.shape[:2] for x in row} for row in zip(*columns)]
    if not sizes or len({len(column) for column in columns}) > 1:
        raise errors.InputError(
            f"{[len(c) for c in columns]} pictures; give as many of each."
        )
    for row, found in enumerate(sizes):
        if len(found) > 1:
            raise errors.InputError(f"row {row} has pictures of sizes {sorted(found)}.")


def _sheet(captions: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of pictures of one height on white, below their captions."""
    widths = [round(TALL * row[0].shape[1] / row[0].shape[0]) for row in rows]
    font = ImageFont.load_default(14)
    wide = max(*widths, *(int(font.getlength(c)) + GAP for c in captions))
    size = (
        GAP + len(captions) * (wide + GAP),
        HEADER + len(rows) * (TALL + GAP) + GAP,
    )
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        left = GAP + column * (wide + GAP)
        pen.text((left, GAP), caption, INK, font)
        for number, (row, width) in enumerate(zip(rows, widths)):
            picture = Image.fromarray(row[column]).resize(
                (width, TALL), Image.Resampling.BICUBIC
            )
            sheet.paste(picture, (left, HEADER + GAP + number * (TALL + GAP)))
    return np.asarray(sheet)
