"""Batches: each a pure function of (seed, step), whoever builds it."""

import contextlib
import dataclasses
import io
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from dinov2_jax import cropping
from dinov2_jax.data import (
    batch,
    build,
    demo,
    draws,
    folder,
    pipeline,
    sources,
)
from dinov2_jax.data.record import Record

CROP = draws.MultiCrop(global_size=32, local_size=16, local_number=2)
SETTINGS = {
    "multicrop": CROP,
    "patch_size": 8,
    "mask_probability": 0.5,
    "mask_ratio": (0.1, 0.5),
    "seed": 3,
    "batch_size": 8,
    "group_size": 2,
    "start": 0,
    "stop": 5,
}


class Numbered:
    """n images whose value is their number; those in `broken` cannot be decoded."""

    classes = ()

    def __init__(self, n, broken=()):
        self.n, self.broken = n, frozenset(broken)

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.broken:
            return Record(b"broken", -1)
        return Record(np.full((40, 40, 3), index, np.uint8), index % 3)

    def name(self, index):
        return f"number {index}"


def batches(source=None, **settings):
    """All that is built of the demo, or of another source."""
    source = demo.Demo("train") if source is None else source
    made = pipeline.train_batches(source, **(SETTINGS | settings))
    with contextlib.closing(made) as steps:
        return list(steps)


def numbers(source, **settings):
    """[steps B] the records that were used, read off the plain pixels of crops."""
    plain = dataclasses.replace(CROP, jitter=0, gray=0, solarize=(0, 0, 0))
    made = batches(source, multicrop=plain, **settings)
    return np.array([step.global_crops[:, 0, 0, 0, 0] for step, *_ in made])


def same(a, b):
    left, right = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(left) == len(right) and all(map(np.array_equal, left, right))


@pytest.fixture(scope="module")
def straight():
    return batches()


def test_a_batch_has_the_documented_shapes(straight):
    made, skipped, retries = straight[0]
    capacity = made.mask_indices.shape[1]
    shapes = {f.name: getattr(made, f.name).shape for f in dataclasses.fields(made)}
    assert shapes == {
        "global_crops": (8, 2, 32, 32, 3),
        "local_crops": (8, 2, 16, 16, 3),
        "masks": (8, 2, 16),
        "mask_indices": (4, capacity),
        "mask_weights": (4, capacity),
    }
    assert made.global_crops.dtype == made.local_crops.dtype == np.uint8
    assert made.masks.sum() == (made.mask_weights > 0).sum() > 0
    assert skipped.dtype == np.int64 and not len(skipped) and not retries


def test_starting_later_equals_skipping(straight):
    assert same(batches(start=3), straight[3:])


def test_steps_and_seeds_differ(straight):
    assert not same(straight[0], straight[1])
    assert not same(batches(seed=4, stop=1), straight[:1])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_build_the_parts_of_the_same_batch(straight, processes):
    parts = [batches(process=i, processes=processes) for i in range(processes)]
    for step, (expected, *_) in enumerate(straight):
        joined = jax.tree.map(
            lambda *x: np.concatenate(x), *(p[step][0] for p in parts)
        )
        assert same(joined, expected)


@pytest.mark.parametrize("threads", [0, 4])
def test_threads_do_not_change_the_batches(straight, threads):
    assert same(batches(threads=threads), straight)


def test_worker_processes_do_not_change_the_batches(straight):
    assert same(batches(workers=2), straight)


def test_each_epoch_shows_every_image_once_in_another_order():
    used = numbers(Numbered(20), batch_size=4, stop=15).reshape(3, 20)
    for epoch in used:
        assert sorted(epoch) == list(range(20))
    assert (used[0] != used[1]).any() and (used[1] != used[2]).any()


def test_an_epoch_need_not_be_a_whole_number_of_batches():
    used = numbers(Numbered(5), batch_size=4, stop=5).reshape(4, 5)
    assert all(sorted(epoch) == list(range(5)) for epoch in used)


def test_the_order_does_not_depend_on_the_batch_size():
    by_four = numbers(Numbered(20), batch_size=4, stop=10)
    by_eight = numbers(Numbered(20), batch_size=8, stop=5)
    np.testing.assert_array_equal(by_four.reshape(-1), by_eight.reshape(-1))


def test_a_mixture_follows_its_weights_and_epochs():
    mixture = sources.Mixture((Numbered(6), Numbered(200)), (1, 3))
    order = pipeline.order(mixture, 0)
    ids = np.array([order[p] for p in range(240)])
    small = ids[ids < 6]
    assert len(small) == 60
    assert all(sorted(epoch) == list(range(6)) for epoch in small.reshape(10, 6))
    large = ids[ids >= 6] - 6
    assert len(set(large)) == len(large) == 180 and large.max() < 200


def test_the_same_image_is_cropped_anew_each_epoch():
    made = batches(sources.Subset(demo.Demo("train"), [7]), stop=2)
    crops = np.concatenate([step.global_crops for step, *_ in made]).reshape(-1, 3072)
    assert len(np.unique(crops, axis=0)) == len(crops)


def test_broken_records_are_replaced_and_reported():
    source = Numbered(20, broken=(4, 11))
    used = numbers(source, batch_size=4, stop=5).reshape(-1)
    assert not set(used) & {4, 11}
    made = batches(source, batch_size=4, stop=5)
    assert sorted(set(np.concatenate([step.skipped for step in made]))) == [4, 11]
    # The other slots show what they would have shown anyway.
    intact = numbers(Numbered(20), batch_size=4, stop=5).reshape(-1)
    kept = ~np.isin(intact, [4, 11])
    np.testing.assert_array_equal(used[kept], intact[kept])
    assert same(made, batches(source, batch_size=4, stop=5))


def test_broken_files_of_a_folder_are_replaced_and_named(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(demo.photograph("coffee")).save(buffer, "JPEG")
    data = buffer.getvalue()
    for name, content in {
        "a.jpg": data,
        "half.jpg": data[: len(data) // 2],
        "empty.png": b"",
        "text.jpg": b"these are words",
    }.items():
        (tmp_path / name).write_bytes(content)
    source = folder.Folder(str(tmp_path))
    (tmp_path / "gone.jpg").write_bytes(data)
    source_with_gone = folder.Folder(str(tmp_path))
    (tmp_path / "gone.jpg").unlink()
    for opened, bad in [(source, 3), (source_with_gone, 4)]:
        made = batches(opened, stop=3)
        skipped = set(np.concatenate([step.skipped for step in made]))
        names = {opened.name(i).rsplit("/")[-1] for i in skipped}
        assert len(names) == bad and "a.jpg" not in names
        assert all(step.global_crops.std((1, 2, 3, 4)).min() > 1 for step, *_ in made)
        pipeline.require_decodable(opened)


def test_nothing_but_broken_records_ends_with_a_reason():
    source = Numbered(9, broken=range(9))
    with pytest.raises(ValueError, match="100 records in a row.*number"):
        batches(source)
    with pytest.raises(ValueError, match="no decodable image among 9 of 9"):
        pipeline.require_decodable(source)
    pipeline.require_decodable(Numbered(9, broken=range(8)))


def test_errors_of_worker_processes_reach_the_caller():
    with pytest.raises(ValueError, match="100 records in a row"):
        batches(Numbered(3, broken=range(3)), workers=1)


def test_without_a_mask_probability_every_patch_is_a_target():
    made = batches(mask_probability=None, stop=1)[0].batch
    assert not made.masks.any()
    assert made.mask_indices.shape == (4, 2 * 2 * 16)
    np.testing.assert_allclose(made.mask_weights, 1 / 16)


def test_no_local_crops_give_an_empty_array():
    none = dataclasses.replace(CROP, local_number=0)
    made = batches(multicrop=none, stop=1)[0].batch
    assert made.local_crops.shape == (8, 0, 16, 16, 3)


def test_canvases_hold_what_the_host_would_have_cut(straight):
    made = batches(canvas=96)
    for step, expected in zip(made, straight, strict=True):
        got = cropping.views(step.batch.images, step.batch.draws, CROP)
        built = step.batch.cropped(*got)
        assert same(built.masks, expected.batch.masks)
        for name in ("global_crops", "local_crops"):
            error = np.abs(
                np.asarray(getattr(built, name), int) - getattr(expected.batch, name)
            )
            # test_device holds single operations; this the pairing of draws and images.
            assert error.mean() < 0.2


def test_an_image_larger_than_the_canvas_is_shrunk_onto_it():
    made = batches(Numbered(9), canvas=32, batch_size=2, stop=1)[0].batch
    assert made.images.shape == (2, 32, 32, 3)
    assert (made.images == made.images[:, :1, :1, :1]).all()
    boxes = made.draws.box
    assert (boxes[..., :2] + boxes[..., 2:] <= 32).all() and boxes.max() > 16


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"patch_size": 7}, "multiples of patch_size=7"),
        ({"patch_size": 32}, "multiples"),
        ({"processes": 3}, "processes=3"),
        ({"process": 2, "processes": 2}, "process=2"),
        ({"group_size": 3}, "group_size=3"),
        ({"group_size": 8, "processes": 2}, "group_size=8"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"start": 4, "stop": 3}, "stop=3"),
        ({"seed": -1}, "seed=-1"),
        ({"mask_probability": 1.5}, "probability=1.5"),
        ({"mask_ratio": (0.5, 0.1)}, "ratio="),
        ({"source": Numbered(0)}, "no record"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(wrong, words):
    settings = {"source": Numbered(4)} | SETTINGS | wrong
    with pytest.raises(ValueError, match=words):
        pipeline.train_batches(**settings)


def evaluated(source, **settings):
    with contextlib.closing(pipeline.eval_batches(source, **settings)) as steps:
        return list(steps)


def test_evaluation_passes_once_over_the_data_in_order_with_static_shapes():
    made = evaluated(Numbered(10, broken=(3,)), batch_size=4, resize=16, crop=12)
    assert [step.images.shape for step in made] == [(4, 12, 12, 3)] * 3
    ids = np.concatenate([step.ids for step in made])
    assert ids.tolist() == [0, 1, 2, -1, 4, 5, 6, 7, 8, 9, -1, -1]
    labels = np.concatenate([step.labels for step in made])
    np.testing.assert_array_equal(labels, np.where(ids < 0, -1, ids % 3))
    images = np.concatenate([step.images for step in made])
    np.testing.assert_array_equal(images[:, 5, 5, 0], np.maximum(ids, 0))
    assert np.concatenate([step.skipped for step in made]).tolist() == [3]


def test_evaluation_processes_see_equally_many_batches():
    settings = {"batch_size": 4, "resize": 16, "crop": 16}
    whole = evaluated(Numbered(9), **settings)
    parts = [evaluated(Numbered(9), process=i, processes=2, **settings) for i in (0, 1)]
    for step, pair in zip(whole, zip(*parts, strict=True), strict=True):
        for field in ("images", "labels", "ids"):
            joined = np.concatenate([getattr(part, field) for part in pair])
            np.testing.assert_array_equal(joined, getattr(step, field))


def test_a_limited_evaluation_is_spread_over_the_data():
    made = evaluated(Numbered(100), batch_size=4, resize=16, crop=16, limit=4)
    assert [step.ids.tolist() for step in made] == [[0, 25, 50, 75]]
    made = evaluated(Numbered(3), batch_size=4, resize=16, crop=16, limit=50)
    assert [step.ids.tolist() for step in made] == [[0, 1, 2, -1]]


@pytest.mark.parametrize("wrong", [{"crop": 20}, {"crop": 0}, {"limit": 0}])
def test_evaluation_settings_that_do_not_fit_are_refused(wrong):
    settings = {"batch_size": 4, "resize": 16, "crop": 16} | wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        pipeline.eval_batches(Numbered(3), **settings)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(300, 451), (451, 300), (200, 200), (31, 97)])
def test_the_central_crop_equals_torchvisions(shape, monkeypatch):
    # Beside a CPU build of torch its compiled operators, unused here, do not load.
    name = "torchvision._meta_registrations"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="needs torch and torchvision"
    )
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    picture = transforms.Resize(64, transforms.InterpolationMode.BICUBIC)(
        Image.fromarray(image)
    )
    expected = np.asarray(transforms.CenterCrop(56)(picture))
    np.testing.assert_array_equal(build.center_crop(image, 64, 56), expected)


def test_a_thin_line_is_skipped_instead_of_filling_the_memory():
    (made,) = evaluated(Line(1), batch_size=1)
    assert made.skipped.tolist() == [0] and made.ids.tolist() == [-1]


class Line(Numbered):
    """One image a pixel high and a million wide."""

    def __getitem__(self, index):
        return Record(np.zeros((1, 10**6, 3), np.uint8), 0)


def test_a_closed_iterator_ends():
    steps = pipeline.train_batches(Numbered(4), **(SETTINGS | {"stop": 10**6}))
    assert isinstance(next(steps)[0], batch.Batch)
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)


def test_an_iterator_left_open_ends_quietly_with_python():
    program = """
from dinov2_jax.data import demo, draws, pipeline
steps = pipeline.train_batches(
    demo.Demo("train"), multicrop=draws.MultiCrop(global_size=32, local_size=16),
    patch_size=8, mask_probability=0.5, mask_ratio=(0.1, 0.5), seed=0, batch_size=2,
    group_size=2, start=0, stop=10**6)
next(steps)
"""
    root = pathlib.Path(pipeline.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
