"""Batches for training and for evaluation, with Grain from one end to the other.

A training batch is a pure function of (seed, step): it keeps no iterator state and
does not depend on how many processes, workers or threads build it.
"""

import atexit
import multiprocessing.connection
import os
import threading
import weakref
from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np
from absl import flags

from dinov2_jax import errors
from dinov2_jax.data import build, decode, draws, masks, shared_memory, sources
from dinov2_jax.data.reading import Reader
from dinov2_jax.data.record import Source

_OPEN = weakref.WeakSet()  # iterators that were handed out


def train_batches(
    source: Source,
    *,
    multicrop: draws.MultiCrop,
    patch_size: int,
    mask_probability: float | None,
    mask_ratio: tuple[float, float],
    seed: int,
    batch_size: int,
    group_size: int,
    start: int,
    stop: int,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
    max_pixels: int = decode.MAX_PIXELS,
    attempts: int = 3,
    canvas: int | None = None,
    resize: str = "pillow",
    rules: decode.Rules = decode.RULES,
) -> Iterator[build.Built]:
    """This process's part of the batches of steps start..stop-1.

    Each image of a source comes exactly once in len(source) positions, in another
    order each time; a Mixture interleaves its sources by weight. A record that cannot
    be decoded is replaced by another one. Worker processes are spawned: a script that
    asks for them needs the `if __name__ == "__main__"` guard.

    Args:
        source: where the images come from.
        multicrop: the augmentation.
        patch_size: pixels; divides the sizes of all crops.
        mask_probability: share of the global crops that are masked; None masks none
            and makes every patch a target, for distillation.
        mask_ratio: smallest and largest share of masked patches of a masked crop.
        seed: >= 0.
        batch_size: B, images over all processes.
        group_size: images that share one buffer of masked patches.
        start, stop: steps, 0 <= start <= stop.
        process, processes: which part of the batch, of how many equal ones.
        workers: processes that build batches; 0 builds them in threads of this one.
        threads: threads a process or worker, each for one batch.
        prefetch: batches that a process or worker keeps ready.
        max_pixels: largest image that is decoded.
        attempts: reads of a record, with growing pauses, before it is replaced.
        canvas: None cuts the crops here; else no crop is cut, but each image, shrunk
            to this side if it is larger, lies in a corner of a square of so many
            pixels, with the draws by which `cropping.views` cuts it.
        resize: how crops are cut here, a way of resizing.WAYS.
        rules: how images of more than 8 bits and damaged ones are decoded.
    Returns: an iterator of build.Built, whose arrays are NumPy's; close() it to end
        its threads and workers.
    Raises: ValueError at once if sizes do not fit together, and while iterating if
        100 records in a row cannot be decoded.
    """
    sizes = [multicrop.global_size]
    if multicrop.local_number:
        sizes.append(multicrop.local_size)
    if any(size % patch_size for size in sizes):
        raise errors.InputError(
            f"crop sizes {sizes} must be multiples of {patch_size=}."
        )
    _check_parts(source, batch_size, process, processes)
    local = batch_size // processes
    if group_size < 1 or local % group_size:
        raise errors.InputError(
            f"{batch_size=} over {processes=} leaves {local} images a process; it must "
            f"be a multiple of {group_size=}."
        )
    if seed < 0 or not 0 <= start <= stop:
        raise errors.InputError(f"{seed=}, {start=} must be >= 0 and {stop=} >= start.")
    side = multicrop.global_size // patch_size
    rows = group_size * multicrop.global_number
    capacity = rows * side * side
    if mask_probability is not None:
        capacity = masks.upper_bound(rows, side * side, mask_probability, mask_ratio)
    builder = build.TrainBuilder(
        reader=Reader(source, max_pixels, attempts, rules=rules),
        order=order(source, seed),
        multicrop=multicrop,
        canvas=canvas,
        resize=resize,
        side=side,
        max_block=masks.max_block(multicrop.global_size, patch_size),
        mask_probability=mask_probability,
        mask_ratio=mask_ratio,
        capacity=capacity,
        seed=seed,
        batch_size=batch_size,
        group_size=group_size,
        first=process * local,
        local=local,
    )
    steps = grain.MapDataset.range(start, stop).map(builder)
    names = ("data.workers", "data.prefetch")
    return iterate(steps, workers, threads, prefetch, builder.nbytes, names)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    resize: int = 256,
    crop: int = 224,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
    max_pixels: int = decode.MAX_PIXELS,
    limit: int | None = None,
    rules: decode.Rules = decode.RULES,
) -> Iterator[build.EvalBatch]:
    """This process's part of one pass over a source, in order.

    All processes see equally many batches of one shape; the last is padded.

    Args:
        source: where the images come from.
        batch_size: images over all processes.
        resize: the shorter side becomes this long, pixels; bicubic, antialiased.
        crop: side of the central crop, pixels, <= resize.
        process, processes, workers, threads, prefetch, max_pixels: as train_batches.
        limit: at most so many records, evenly spread over the source.
        rules: as train_batches.
    Returns: an iterator of build.EvalBatch; close() it to end its threads and workers.
    Raises: ValueError at once if sizes do not fit together.
    """
    _check_parts(source, batch_size, process, processes)
    if not 0 < crop <= resize:
        raise errors.InputError(f"{crop=} must be at least 1 and at most {resize=}.")
    if limit is not None and limit < 1:
        raise errors.InputError(
            f"{limit=} must be at least 1, or None for all records."
        )
    builder = build.EvalBuilder(
        source=source,
        count=min(len(source), limit or len(source)),
        resize=resize,
        crop=crop,
        batch_size=batch_size,
        first=process * (batch_size // processes),
        local=batch_size // processes,
        max_pixels=max_pixels,
        rules=rules,
    )
    steps = grain.MapDataset.range(-(-builder.count // batch_size)).map(builder)
    return iterate(steps, workers, threads, prefetch, builder.nbytes)


def order(source: Source, seed: int) -> grain.MapDataset:
    """The endless order of record numbers, by position.

    Args:
        source: a Mixture is interleaved by its weights.
        seed: >= 0.
    Returns: order[p] is a record number, found without remembering any other.
    """
    parts = source.sources if isinstance(source, sources.Mixture) else (source,)
    orders, first = [], 0
    for number, part in enumerate(parts):
        own = np.random.SeedSequence([seed, build.ORDER, number]).generate_state(1)[0]
        ids = grain.MapDataset.range(first, first + len(part))
        # Shuffled before repeated: each epoch is a permutation, with an own order.
        orders.append(ids.seed(int(own)).shuffle().repeat())
        first += len(part)
    if len(orders) == 1:
        return orders[0]
    return grain.MapDataset.mix(orders, source.weights)


def require_decodable(
    source: Source,
    number: int = 64,
    max_pixels: int = decode.MAX_PIXELS,
    rules: decode.Rules = decode.RULES,
) -> None:
    """Raises ValueError if none of some records, spread over a source, decodes.

    Of a Mixture this is asked of each source.
    """
    if isinstance(source, sources.Mixture):
        for part in source.sources:
            require_decodable(part, number, max_pixels, rules)
        return
    count = min(number, len(source))
    ids = np.arange(count) * len(source) // count
    for index in ids:
        try:
            build.read(source, int(index), max_pixels, rules)
            return
        except (decode.DecodeError, OSError) as error:
            last = error
    raise errors.InputError(
        f"no decodable image among {len(ids)} of {len(source)} records; the last was "
        f"{source.name(int(ids[-1]))}: {last}"
    )


def _check_parts(source: Source, batch_size: int, process: int, processes: int):
    """Raises ValueError if there is no record, or no equal part for each process."""
    if len(source) < 1:
        raise errors.InputError("the source holds no record.")
    if batch_size < 1 or processes < 1 or batch_size % processes:
        raise errors.InputError(
            f"{batch_size=} must be a positive multiple of {processes=}."
        )
    if not 0 <= process < processes:
        raise errors.InputError(f"{process=} must lie in 0..{processes - 1}.")


def iterate(
    steps: grain.MapDataset,
    workers: int,
    threads: int,
    prefetch: int,
    nbytes: int = 0,
    settings: Sequence[str] = ("workers",),
) -> Iterator:
    """Iterates over a dataset, and ends its threads and workers when closed.

    Args:
        steps: builds its elements.
        workers, threads, prefetch: as train_batches.
        nbytes: of the arrays of an element.
        settings: what the user calls workers and, where it can be set, prefetch.
    Raises: ValueError at once if workers could not hand their elements over, and while
        iterating if the memory for that is full all the same.
    """
    if workers:
        shared_memory.require(nbytes, workers, prefetch, len(steps), settings)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    dataset = steps.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain hands them on; notebooks parse none
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=prefetch
            ),
            worker_init_fn=_worker_started,
        )
    elements = _elements(dataset)
    if workers:
        elements = shared_memory.handed_over(elements, workers, settings)
    _OPEN.add(elements)
    return elements


def _elements(dataset: grain.IterDataset):
    """The elements of a dataset; closes Grain's iterator with this one."""
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


@atexit.register
def _close_all() -> None:
    """Closes what is still open, while the modules that this needs are whole."""
    for elements in list(_OPEN):
        elements.close()


def _worker_started(worker: int, workers: int) -> None:
    """Fits a worker to its life: one thread of OpenCV, and no longer than its parent.

    The workers are the parallelism; and a parent that is killed cannot end them.
    """
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent has ended."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
