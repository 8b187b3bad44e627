"""Augmentation and masks against what the reference's own code produced."""

import json
import math

import jax
import numpy as np
import peers
import pytest

from dinov2_jax import cropping
from dinov2_jax.data import augment, batch, draws, masks, resizing


@pytest.fixture(scope="module")
def ops(arrays):
    return arrays("augment_ops")


def parameters(ops, kind):
    """(key, parameters) of all recorded operations of a kind."""
    found = [(k, v) for k, v in ops.meta["ops"].items() if k.startswith(f"ops/{kind}")]
    assert found
    return found


OPERATIONS = dict(
    zip(("brightness", "contrast", "saturation", "hue"), augment.JITTER, strict=True)
)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_jitter_operation_is_exact(ops, name):
    for key, made in parameters(ops, name):
        got = OPERATIONS[name](ops["image"], made["factor"])
        np.testing.assert_array_equal(got, ops[key], err_msg=key)


def test_jitter_in_both_recorded_orders_is_exact(ops):
    for key, made in parameters(ops, "jitter"):
        got = ops["image"]
        for step in made["order"]:
            got = augment.JITTER[step](got, made["factors"][step])
        np.testing.assert_array_equal(got, ops[key], err_msg=key)


def test_flip_grayscale_and_solarisation_are_exact(ops):
    image = ops["image"]
    np.testing.assert_array_equal(augment.flipped(image), ops["ops/hflip"])
    np.testing.assert_array_equal(augment.grayscale(image), ops["ops/grayscale3"])
    for key, _ in parameters(ops, "solarize"):
        threshold = int(key.removeprefix("ops/solarize"))
        np.testing.assert_array_equal(augment.solarized(image, threshold), ops[key])


def test_blur_is_within_one_level(ops):
    for key, made in parameters(ops, "blur"):
        got = augment.blurred(ops["image"], made["sigma"])
        error = np.abs(got.astype(int) - ops[key])
        # One level: the reference adds in another order before it rounds.
        assert error.max() <= 1 and (error > 0).mean() < 1e-3, key


@pytest.mark.parametrize("way", resizing.WAYS)
def test_resized_crop_agrees_up_to_the_order_of_pillows_passes(ops, way):
    if way == "simd":
        peers.package("cykooz_resizer", "simd")
    cut = resizing.WAYS[way](ops["image"])
    for key, box in parameters(ops, "crop_resize"):
        place = (box["top"], box["left"], box["height"], box["width"])
        got = cut(place, box["size"])
        error = np.abs(got.astype(int) - ops[key])
        # Pillow rounds between its passes and chooses their order by version.
        assert error.mean() < 0.3 and (error <= 2).mean() > 0.98, key


def test_normalised_values_agree_to_float_rounding(ops):
    got = batch.normalize(ops["ops/crop_resize_1"]).transpose(2, 0, 1)
    np.testing.assert_allclose(got, ops["ops/normalize_crop1"], atol=1e-6)
    np.testing.assert_allclose(batch.MEAN, ops.meta["mean"], rtol=1e-6)
    np.testing.assert_allclose(batch.STD, ops.meta["std"], rtol=1e-6)


def within(values, expected, sigmas=5):
    """Asserts that two sample means differ by chance; expected has n, mean, std."""
    values = np.asarray(values, float)
    error = math.hypot(
        values.std() / math.sqrt(len(values)),
        expected["std"] / math.sqrt(expected["n"]),
    )
    assert abs(values.mean() - expected["mean"]) <= sigmas * error + 1e-12


@pytest.fixture(scope="module")
def stats(golden):
    return json.loads((golden / "augment_stats.json").read_text())


def recorded_crop(stats):
    """The augmentation with the settings of the recorded statistics."""
    meta, chances = stats["meta"], stats["nominal_probability"]
    first = chances["global_1"]

    def by_view(name):
        return tuple(chances[kind][name] for kind in ("global_1", "global_2", "local"))

    return draws.MultiCrop(
        aspect=tuple(meta["default_ratio"]),
        flip=first["hflip"],
        jitter=first["jitter"],
        gray=first["grayscale"],
        blur=by_view("blur"),
        solarize=by_view("solarize"),
        global_size=meta["global_size"],
        local_size=meta["local_size"],
        local_number=meta["n_local"],
        global_scale=tuple(meta["global_scale"]),
        local_scale=tuple(meta["local_scale"]),
    )


def views(stats, values, kind):
    """Of values [images V ...], those of one recorded kind of view, in one row."""
    start = {"global_1": 0, "global_2": 1, "local": 2}[kind]
    end = 2 + stats["meta"]["n_local"] if kind == "local" else start + 1
    return np.concatenate(values[:, start:end])


def choices(stats, number, seed):
    """The draws of so many images of the recorded size."""
    crop, rng = recorded_crop(stats), np.random.default_rng(seed)
    numbers = np.stack([crop.numbers(rng) for _ in range(number)])
    height, width = stats["meta"]["image_hw"]
    return crop.draws(numbers, np.full(number, height), np.full(number, width))


@pytest.fixture(scope="module")
def drawn_views(stats):
    return choices(stats, 2000, seed=0)


@pytest.mark.parametrize("kind", ["global_1", "global_2", "local"])
def test_random_choices_have_the_reference_distributions(stats, drawn_views, kind):
    expected = stats[kind]
    own = draws.Draws(*(views(stats, field, kind) for field in drawn_views))
    height, width = stats["meta"]["image_hw"]
    top, left, h, w = own.box.T.astype(float)
    within(h * w / (height * width), expected["area_fraction"])
    within(w / h, expected["aspect"])
    within(np.log(w / h), expected["log_aspect"])
    within((top + h / 2) / height, expected["crop_center_y"])
    within((left + w / 2) / width, expected["crop_center_x"])
    # Spread too: 5 % is over four standard errors of a deviation from 2,000 values.
    spread = expected["area_fraction"]["std"]
    assert (h * w / (height * width)).std() == pytest.approx(spread, rel=0.05)
    frequency = {
        "hflip": own.flip,
        "jitter": own.jitter,
        "grayscale": own.gray,
        "blur": own.sigma > 0,
        "solarize": own.solarize,
    }
    for name, happened in frequency.items():
        p = expected["frequency"][name]
        std = math.sqrt(p * (1 - p))
        within(happened, {"n": expected["n_views"], "mean": p, "std": std})
    if expected["blur_sigma"]:
        within(own.sigma[own.sigma > 0], expected["blur_sigma"])


def test_jitter_factors_and_orders_are_uniform(stats, drawn_views):
    factors = drawn_views.factors[drawn_views.jitter]
    n = len(factors)
    recorded = stats["jitter_factors"]
    for column, name in zip(factors.T, OPERATIONS, strict=True):
        low, high = (recorded[name][end] for end in ("min", "max"))
        # The ends of n uniform numbers lie within 20 / n of their range by e^-20.
        room = (high - low) * 20 / min(n, recorded[name]["n"])
        assert abs(column.min() - low) < room and abs(column.max() - high) < room
        within(column, recorded[name])
        # Five standard errors of the mean of n uniform numbers.
        error = (high - low) / math.sqrt(12 * n)
        assert abs(column.mean() - (low + high) / 2) < 5 * error
    orders = drawn_views.order[drawn_views.jitter]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.abs(counts / n - 1 / 24).max() < 5 * math.sqrt(1 / 24 / n)


def on_the_host(image, made, crop):
    """Global and local views of each draw, by Pillow and OpenCV."""
    cut = [augment.views(image, draws.Draws(*draw), crop) for draw in zip(*made)]
    return [np.stack(x) for x in zip(*cut)]


def on_the_device(image, made, crop):
    """The same views, by one program of the devices; the image is broadcast."""
    height, width = image.shape[:2]
    canvas = np.zeros((max(height, width),) * 2 + (3,), np.uint8)
    canvas[:height, :width] = image
    cut = jax.jit(lambda draw: cropping.views(canvas[None], draw, crop))
    made = [cut(draws.Draws(*(x[None] for x in draw))) for draw in zip(*made)]
    return [np.concatenate(x) for x in zip(*made)]


@pytest.mark.parametrize(("place", "number"), [(on_the_host, 150), (on_the_device, 40)])
def test_pixels_have_the_reference_statistics(stats, ops, place, number):
    made = choices(stats, number, seed=1)
    cut = place(ops["stats_image"], made, recorded_crop(stats))
    normal = [batch.normalize(part) for part in cut]
    for kind in ("global_1", "global_2", "local"):
        expected, own = stats[kind], normal[kind == "local"]
        if kind != "local":
            own = own[:, int(kind[-1]) - 1 : int(kind[-1])]
        own = np.concatenate(own)
        # Views of one image are correlated only by the image, which is fixed.
        within(own.mean((1, 2, 3)), expected["per_view_mean"])
        within(own.std((1, 2, 3)), expected["per_view_std"])
        by_channel = own.mean((1, 2))
        for channel in range(3):
            reference = dict(expected["per_view_mean"])
            reference["mean"] = expected["pixel_mean"][channel]
            within(by_channel[:, channel], reference)


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads((golden / "masking_stats.json").read_text())


@pytest.fixture(scope="module")
def drawn(recorded):
    """Masks of 1,500 batches and every block that was added to them."""
    meta, blocks, deltas = recorded["meta"], [], []
    add_block, patch = masks.add_block, pytest.MonkeyPatch()

    def recording(rng, mask, allowed, aspect):
        before = mask.sum()
        box = add_block(rng, mask, allowed, aspect)
        if box:
            blocks.append(box)
            deltas.append(mask.sum() - before)
        return box

    patch.setattr(masks, "add_block", recording)
    rng, grid = np.random.default_rng(0), (meta["grid"], meta["grid"])
    out = [
        masks.draw(
            rng,
            meta["rows"],
            grid,
            meta["probability"],
            tuple(meta["mask_ratio"]),
            max_patches=meta["max_num_patches"],
        )
        for _ in range(1500)
    ]
    patch.undo()
    return np.stack(out), np.array(blocks), np.array(deltas)


def test_upper_bound_is_the_references(recorded):
    meta = recorded["meta"]
    bound = masks.upper_bound(
        meta["rows"], meta["n_tokens"], meta["probability"], tuple(meta["mask_ratio"])
    )
    assert bound == recorded["upperbound"]["mean"]


def test_upper_bound_is_the_references_in_its_training_runs(arrays, trajectory_file):
    run = arrays(trajectory_file)
    cfg = run.meta["cfg"]["ibot"]
    share, ratio = cfg["mask_sample_probability"], tuple(cfg["mask_ratio_min_max"])
    for number in range(1, run.meta["n_steps"] + 1):
        rows, patches = run[f"step{number}/collated_masks"].shape
        bound = masks.upper_bound(rows, patches, share, ratio)
        assert bound == run[f"step{number}/upperbound"]


def test_mask_counts_have_the_reference_distribution(recorded, drawn):
    counts = drawn[0].sum((2, 3))
    own = counts[counts > 0]
    assert ((counts > 0).sum(1) == recorded["meta"]["n_samples_masked"]).all()
    within(own, recorded["masked_count_per_masked_crop"], sigmas=4)
    within(counts.sum(1), recorded["total_masked_per_batch"], sigmas=4)
    histogram = recorded["masked_count_per_masked_crop"]["histogram"]
    got, _ = np.histogram(own, histogram["bins"])
    expected = np.array(histogram["counts"])
    share, reference = got / len(own), expected / expected.sum()
    # 4.5 standard errors for each of 33 bins of two samples; empty bins stay empty.
    error = np.sqrt(reference * (1 / len(own) + 1 / expected.sum()))
    assert (np.abs(share - reference) <= 4.5 * error).all()
    assert own.max() <= recorded["target_count_per_masked_crop"]["max"]


def test_every_row_is_masked_equally_often(recorded, drawn):
    meta = recorded["meta"]
    frequency = drawn[0].any((2, 3)).mean(0)
    share = meta["n_samples_masked"] / meta["rows"]
    # Five standard errors of 1,500 draws with this probability; 0 where all are masked.
    error = math.sqrt(share * (1 - share) / len(drawn[0]))
    assert np.abs(frequency - share).max() <= 5 * error + 1e-12


def test_blocks_have_the_reference_shapes(recorded, drawn):
    _, blocks, deltas = drawn
    height, width = blocks[:, 2], blocks[:, 3]
    # Blocks of one mask share its target, so that their mean varies less than that of
    # independent ones: 0.65 to 0.98 of it here. Four errors of the latter are safe.
    for values, name in [
        (height, "block_height"),
        (width, "block_width"),
        (height * width, "block_area"),
        (np.log(height / width), "block_log_aspect_h_over_w"),
        (deltas, "block_delta"),
    ]:
        within(values, recorded[name], sigmas=4)
    per_crop = recorded["n_blocks_per_masked_crop"]
    masked = drawn[0].any((2, 3)).sum()
    error = per_crop["std"] * math.sqrt(1 / masked + 1 / per_crop["n"])
    assert abs(len(blocks) / masked - per_crop["mean"]) < 4 * error


def test_packed_masks_are_the_references_lists(arrays, trajectory_file):
    run = arrays(trajectory_file)
    masks_of_step = run["step1/collated_masks"]
    capacity = int(run["step1/upperbound"])
    # The packing does not depend on what the rows mean: the reference's crop-major
    # rows go through as one group of single views.
    _, indices, weights = batch.pack_masks(masks_of_step[None], 1, capacity)
    count = int(run["step1/n_masked_patches"][0])
    np.testing.assert_array_equal(indices[0, :count], run["step1/mask_indices_list"])
    np.testing.assert_array_equal(weights[0, :count], run["step1/masks_weight"])
    assert not indices[0, count:].any() and not weights[0, count:].any()
