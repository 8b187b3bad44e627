"""Turning the hue of an image, bit for bit as Pillow's HSV would, in a third of the time.

Pillow converts pixel by pixel; here whole planes are looked up. The tables are made by
Pillow itself, from one colour for each entry, when the first image asks for them.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

# Where red, green and blue of each of six kinds of colour stand: which is the largest
# value, Pillow's first choice first, and which the smallest.
KINDS = ((0, 2, 1), (0, 1, 2), (1, 2, 0), (1, 0, 2), (2, 1, 0), (2, 0, 1))
# Whether red, green and blue are the largest (0), middle (1) or smallest (2) value in
# each sixth of the circle.
ROLES = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [2, 1, 0], [1, 2, 0], [0, 2, 1]])


class Tables(NamedTuple):
    """What Pillow makes of each kind of colour and of each hue."""

    hue: np.ndarray  # [6*256*256] uint8 by kind, largest - middle, largest - smallest
    flat: np.ndarray  # [256*256] uint16, saturation and new smallest value, by largest
    #                   and largest - smallest
    share: np.ndarray  # [256*256] float64 of the largest value that the middle one is,
    #                    by hue and saturation
    roles: np.ndarray  # [3 3 256] uint8, 255 where red, green or blue is the largest,
    #                    middle or smallest value, else 0, by hue


@functools.cache
def tables() -> Tables:
    """The tables; 1 MB."""
    a, b = np.indices((256, 256), np.uint8)
    valid = a <= b  # the middle value lies between the others
    hues = np.zeros((6, 256, 256), np.uint8)
    for kind, (largest, middle, smallest) in enumerate(KINDS):
        colors = np.zeros((256, 256, 3), np.uint8)
        colors[..., largest], colors[..., middle] = b, np.where(valid, b - a, 0)
        hues[kind] = _hsv(colors)[..., 0]
    # Of the largest value a and the span b: gray but for one channel.
    colors = np.stack([a, *[np.where(b <= a, a - b, 0)] * 2], axis=-1)
    saturation = _hsv(colors)[..., 1]
    hsv = np.stack([np.zeros_like(a), saturation, a], axis=-1)
    smallest = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))[..., 2]
    place = np.arange(256) * 6.0 / 255.0
    sixth = np.floor(place)
    share = (place - sixth).astype(np.float32).astype(np.float64)
    down = np.where(sixth % 2, share, 1.0 - share)
    part = (np.arange(256) / 255.0).astype(np.float32).astype(np.float64)
    roles = ROLES[sixth.astype(int) % 6].T[:, None] == np.arange(3)[:, None]
    return Tables(
        hue=hues.ravel(),
        flat=np.stack([saturation, smallest], axis=-1).view("<u2").ravel(),
        share=(1.0 - part * down[:, None]).ravel(),
        roles=np.where(roles, 255, 0).astype(np.uint8),
    )


def turned(image: np.ndarray, shift: float) -> np.ndarray:
    """[H W 3] uint8: hue turned by a share of the circle, in Pillow's 8-bit HSV."""
    known = tables()
    red, green, blue = cv2.split(image)
    largest = cv2.max(cv2.max(red, green), blue)
    smallest = cv2.min(cv2.min(red, green), blue)
    middle = red + green + blue - largest - smallest  # modulo 256, as it is below 256
    span, fall = largest - smallest, largest - middle
    kind = (red != smallest) + np.uint8(4)
    np.subtract(kind, 2, out=kind, where=green == largest)
    np.copyto(kind, green != smallest, where=red == largest)
    key = cv2.merge([span, fall, kind, np.zeros_like(kind)]).view("<u4")[..., 0]
    hue = np.take(known.hue, key)
    hue += np.uint8(int(255 * shift) % 256)
    flat = np.take(known.flat, cv2.merge([span, largest]).view("<u2")[..., 0])
    saturation, low = cv2.split(flat[..., None].view(np.uint8))
    share = np.take(known.share, cv2.merge([saturation, hue]).view("<u2")[..., 0])
    share *= largest
    share += 0.5  # rounded when it is cut
    middle = share.astype(np.uint8)
    channels = []
    for roles in known.roles:
        parts = [
            cv2.bitwise_and(cv2.LUT(hue, role), value)
            for role, value in zip(roles, (largest, middle, low))
        ]
        channels.append(parts[0] | parts[1] | parts[2])
    return cv2.merge(channels)


def _hsv(colors: np.ndarray) -> np.ndarray:
    """[... 3] uint8: Pillow's HSV of RGB."""
    return np.asarray(Image.fromarray(colors).convert("HSV"))
