"""One job for each of many items, side by side in processes of their own."""

import argparse
import concurrent.futures
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The option --workers."""
    parser.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count(),
        help="processes; default %(default)s, the cores of this machine",
    )


def _positive(text: str) -> int:
    """A whole number above 0. Raises: ValueError, which argparse tells."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number above 0")
    return int(text)


def each(
    job: Callable[[Any], Any], items: Sequence[Any], workers: int
) -> Iterator[tuple[Any, Any]]:
    """(item, what the job makes of it), as they come.

    Args:
        job: picklable; sent to each process once.
        items: of any number.
        workers: processes; with one, all is done in this one.
    Raises: what a job raises.
    """
    workers = min(workers, len(items))
    if workers < 2:
        yield from ((item, job(item)) for item in items)
        return
    spawned = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, spawned, _begin, (job,)
    ) as pool:
        # The processes inherit the mask: Ctrl-C ends the parent, in one line.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            running = {pool.submit(_do, item): item for item in items}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for done in concurrent.futures.as_completed(running):
                yield running.pop(done), done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(job: Callable[[Any], Any]) -> None:
    """Keeps the job for all items of this process."""
    global _JOB
    _JOB = job


def _do(item: Any) -> Any:
    """The job of this process for one item."""
    return _JOB(item)
