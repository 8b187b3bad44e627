"""Classes of every pixel of images of any size, by windows of one size."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dinov2_jax.data import dense, dense_views
from dinov2_jax.evals import segmentation
from dinov2_jax.models import probes


def predictions(
    pairs: Iterator[tuple[int, dense.Pair]],
    logits: Callable[[np.ndarray], np.ndarray],
    size: int,
    s: Any,
) -> Iterator[tuple[int, dense.Pair, np.ndarray]]:
    """Numbers and pairs with the class of every pixel, in order.

    Windows of several images fill one batch, so that all batches have one shape.

    Args:
        pairs: (number, pair).
        logits: [n crop crop 3] uint8, n <= size -> [n h w K].
        size: windows at once.
        s: settings: crop, side, stride, scales, mirrored.
    """
    waiting, windows, made = collections.deque(), [], []

    def flush(all_of_them: bool) -> Iterator:
        while len(windows) >= size or (all_of_them and windows):
            made.extend(logits(np.stack(windows[:size])))
            del windows[:size]
        while waiting and waiting[0][2] <= len(made):
            number, pair, need, views = waiting.popleft()
            yield number, pair, _assembled(pair.target.shape, made[:need], views, s)
            del made[:need]

    for number, pair in pairs:
        views = list(_views(pair.image, s))
        cut = [window for _, _, found in views for window in found]
        windows.extend(cut)
        sizes = [(shape, flip) for shape, flip, _ in views]
        waiting.append((number, pair, len(cut), sizes))
        yield from flush(False)
    yield from flush(True)


def _views(image: np.ndarray, s: Any) -> Iterator[tuple]:
    """(size, mirrored, windows) of an image at every scale."""
    for scale in s.scales:
        shape = dense_views.scaled_size(image, s.side, scale)
        scaled = dense_views.resized(image, shape)
        for flip in (False, True)[: 1 + s.mirrored]:
            one = scaled[:, ::-1] if flip else scaled
            one = dense_views.padded(one, (s.crop, s.crop), dense_views.PADDING)
            rows, columns = (segmentation.starts(n, s.crop, s.stride) for n in shape)
            found = [one[y : y + s.crop, x : x + s.crop] for y in rows for x in columns]
            yield shape, flip, found


def _assembled(
    shape: tuple[int, int], maps: list[np.ndarray], views: list[tuple], s: Any
) -> np.ndarray:
    """[H W] classes of an image from the logits of its windows."""
    found, first = [], 0
    for scaled, flip in views:
        counts = [len(segmentation.starts(n, s.crop, s.stride)) for n in scaled]
        last = first + counts[0] * counts[1]
        part = np.stack(maps[first:last])
        rows, columns = (
            segmentation.enlargement(n, s.crop, s.stride, cells, to, _bilinear)
            for n, cells, to in zip(scaled, part.shape[1:3], shape)
        )
        part = part.reshape(*counts, *part.shape[1:])
        columns = columns[::-1] if flip else columns
        found.append(segmentation.Scaled(part, rows, columns))
        first = last
    return segmentation.classified(found)


def _bilinear(n_in: int, n_out: int) -> np.ndarray:
    """Weights of a resize of images."""
    return probes.bilinear_weights(n_in, n_out, False)
