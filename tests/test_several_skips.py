"""Records that are skipped by several processes: all are counted, none hides."""

import numpy as np
import pytest
import test_several
from PIL import Image

from dinov2_jax import sharding
from dinov2_jax.train import history, loop, progress

COUNTS = ("data/skipped", "data/retries")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 60 images, every fifth of them corrupt."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(60):
        path = folder / f"{number:02}.png"
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if number % 5 == 0:
            path.write_bytes(path.read_bytes()[:60])
    return folder


def run(workdir, images, number: int, *more: str) -> list[tuple[int, str]]:
    """What each process says of a run on them that logs and saves at times of its own."""
    data = f"--config.data.train=folder:{images}"
    times = ("--config.train.log_every=3", "--config.checkpoint.every=2")
    return test_several.finished(
        test_several.started(workdir, number, data, *times, *more)
    )


@pytest.mark.slow
def test_what_all_processes_skip_is_what_one_skips(images, tmp_path):
    counted = []
    for number in (1, 2):
        workdir, lenient = tmp_path / str(number), "--config.data.max_skipped=1.0"
        stop = ("--config.train.stop_at=4",)  # between two lines: the rest is kept
        for more in [stop, ()] if number > 1 else [()]:
            ended = run(workdir, images, number, lenient, *more)
            assert all(code == 0 for code, _ in ended), ended
        lines = [x for x in history.reproducible(workdir) if "data/skipped" in x]
        counted.append([(x["step"], *(x[key] for key in COUNTS)) for x in lines])
    assert counted[0] == counted[1]
    assert [step for step, *_ in counted[0]] == [3, 6, 8]
    assert sum(skipped for _, skipped, _ in counted[0]) > 12


@pytest.mark.slow
def test_too_many_skips_of_one_process_end_all(images, tmp_path):
    strict = "--config.data.max_skipped=0.3"  # of a share of 8: three are too many
    ended = run(tmp_path / "run", images, 2, strict)
    assert [code for code, _ in ended] == [1, 1], ended
    for _, said in ended:
        assert "of 8 records of a step of process " in said, said
        assert "data.max_skipped=0.3" in said and "Traceback" not in said, said


def test_counts_of_each_process_are_summed_when_a_line_is_written(tmp_path):
    asked = []

    def total(counts):
        asked.append(tuple(counts))
        return [2 * count for count in counts]  # as if another met the same

    lines, saved = run_loop(tmp_path, total)
    # After steps 2 and 4 for checkpoints, 3 and 5 for lines: none of the rest ask.
    assert asked == [(2, 6), (1, 3), (1, 3), (1, 3)]
    assert lines == [(3, 6, 18), (5, 4, 12)]
    assert saved == {2: (4, 12), 4: (2, 6), 5: (0, 0)}


def test_each_process_has_the_sum_of_all():
    code = """
import sys
from dinov2_jax import processes, sharding
processes.start()
print("sums", sharding.total([int(sys.argv[1]) + 1, 2**30 * int(sys.argv[1])]))
sys.exit(processes.leave(0, ""))
"""
    for ended, said in test_several.finished(test_several.scripted(code, 2)):
        assert ended == 0 and f"sums [3, {2**30}]" in said, said
    assert sharding.total([4, 5]) == [4, 5]


def run_loop(folder, total):
    """The counts of lines and of checkpoints of five steps that do nothing."""
    quiet = {"health/rejected": np.int32(0), "loss/total": np.float32(1)}
    tally, saved = loop.Tally(), {}
    log = history.History(folder, 0, [])
    loop.run(
        None,
        step=lambda state, batch: (state, quiet),
        batches=iter([(None, 1, 3)] * 5),
        start=0,
        stop=5,
        images=1,
        history=log,
        progress=progress.Progress(0, 5, progress.NOWHERE),
        save=lambda done, *_: saved.update({done: (tally.skipped, tally.retries)}),
        ended=loop.Stop(),
        guard=loop.Guard(3, lambda *_: "", tally),
        total=total,
        log_every=3,
        save_every=2,
    )
    log.close()
    lines = history.reproducible(folder)
    return [tuple(x[key] for key in ("step", *COUNTS)) for x in lines], saved
