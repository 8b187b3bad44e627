"""Linear heads: what they see, how they learn, and which one is reported."""

import jax
import numpy as np
import pytest

from dinov2_jax.data import labelled, sources
from dinov2_jax.evals import linear, metrics

KINDS = linear.kinds((1, 2))
WIDTH, CLASSES = 3, 4


def rows(number: int, seed: int):
    """[number (2+1)*WIDTH] inputs whose classes a linear head can tell, and these."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, number)
    x = rng.normal(size=(number, 3 * WIDTH)) / 4
    x[np.arange(number), 3 + labels] += 2  # reached by all kinds: columns 3 to 8
    return x.astype(np.float32), labels


def test_the_protocol_has_52_heads():
    assert len(linear.kinds()) * len(linear.RATES) == 52
    state = linear.start(jax.random.key(0), linear.kinds(), 8, 10, 13)
    shapes = {name: head["kernel"].shape for name, head in state.heads.items()}
    assert shapes == {
        "blocks1": (13, 8, 10),
        "blocks1_mean": (13, 16, 10),
        "blocks4": (13, 32, 10),
        "blocks4_mean": (13, 40, 10),
    }
    spread = np.asarray(state.heads["blocks4_mean"]["kernel"]).std()
    assert spread == pytest.approx(0.01, rel=0.05)  # 5,200 numbers: 1 %, five times
    assert not any(head["bias"].any() for head in state.heads.values())


def test_each_kind_of_head_sees_its_own_columns():
    found = {kind.name: kind.columns(10, 4) for kind in linear.kinds((1, 4))}
    assert found == {
        "blocks1": slice(30, 40),
        "blocks1_mean": slice(30, 50),
        "blocks4": slice(0, 40),
        "blocks4_mean": slice(0, 50),
    }


def by_hand(kernel, bias, batches, rate, steps):
    """SGD with momentum and a cosine, in float64 NumPy."""
    moved = [np.zeros_like(kernel), np.zeros_like(bias)]
    for step, (x, labels) in enumerate(batches):
        logits = x @ kernel + bias
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        share[np.arange(len(x)), labels] -= 1
        grads = x.T @ share / len(x), share.mean(0)
        moved = [0.9 * m + g for m, g in zip(moved, grads)]
        now = rate * (1 + np.cos(np.pi * step / steps)) / 2
        kernel, bias = kernel - now * moved[0], bias - now * moved[1]
    return kernel, bias


def trained(batches, rates):
    """State before and after, with all losses."""
    state = linear.start(jax.random.key(1), KINDS, WIDTH, CLASSES, len(rates))
    before, losses = jax.tree.map(np.array, state), []
    for x, labels in batches:
        state, found = linear.update(state, x, labels, rates, KINDS, len(batches))
        losses.append(jax.device_get(found))
    return before, state, losses


def test_every_head_learns_as_it_would_alone():
    batches = [rows(32, seed) for seed in range(5)]
    rates = linear.scaled((0.01, 0.5, 3.0), 128)
    assert rates.tolist() == pytest.approx([0.005, 0.25, 1.5])
    before, after, _ = trained(batches, rates)
    assert int(after.step) == 5
    for kind in KINDS:
        head = before.heads[kind.name]
        columns = kind.columns(WIDTH, 2)
        own = [(x[:, columns].astype(np.float64), labels) for x, labels in batches]
        for number, rate in enumerate(rates):
            start = head["kernel"][number], head["bias"][number]
            want = by_hand(*(a.astype(np.float64) for a in start), own, rate, 5)
            got = after.heads[kind.name]
            # float32 against float64 over five steps
            np.testing.assert_allclose(got["kernel"][number], want[0], atol=1e-5)
            np.testing.assert_allclose(got["bias"][number], want[1], atol=1e-5)


def test_the_best_head_is_found_and_guesses_what_it_was_judged_by():
    rates = linear.scaled((1e-4, 0.5, 0.1), 256)
    _, state, losses = trained([rows(32, seed) for seed in range(20)], rates)
    assert (losses[-1]["blocks2"][1] < 0.5 * losses[0]["blocks2"]).all()
    x, labels = rows(70, 99)
    found = linear.accuracies(state.heads, x, labels, KINDS, block=32)
    chosen = linear.best(found)
    assert chosen[1] > 0 and found[chosen[0]][1] > 0.9 > found["blocks2"][0]
    for kind in KINDS:
        for rate in (0, 1):
            guess = linear.guesses(state.heads, (kind.name, rate), x, KINDS)
            assert found[kind.name][rate] == pytest.approx((guess == labels).mean())


def test_a_head_chooses_among_the_classes_of_a_test_set():
    _, state, _ = trained([rows(32, 0)], np.ones(3, np.float32))
    x, _ = rows(40, 5)
    among = np.array([3, 1])
    got = linear.guesses(state.heads, ("blocks1", 0), x, KINDS, among)
    head = state.heads["blocks1"]
    logits = x[:, 3:6] @ np.asarray(head["kernel"][0]) + np.asarray(head["bias"][0])
    assert (got == (logits[:, 1] > logits[:, 3])).all()


def test_the_confusion_matrix_counts_every_image_once():
    labels, guess = np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0])
    matrix = metrics.confusion(labels, guess, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]
    shares = metrics.per_class(matrix)
    assert shares[[0, 2]].tolist() == [0.5, pytest.approx(2 / 3)] and np.isnan(
        shares[1]
    )


def test_images_with_several_labels_count_any_and_those_without_none():
    got = metrics.multi_label_accuracy([3, 1, 5, 0], [[3], [0, 1], [], [2]])
    assert got == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="No image has a label"):
        metrics.multi_label_accuracy([1], [[]])


def test_alexnet_has_a_mean_corruption_error_of_one():
    errors = {name: [error] * 5 for name, error in metrics.ALEXNET.items()}
    assert metrics.mean_corruption_error(errors) == pytest.approx(1)
    half = {name: [e / 4, 3 * e / 4] for name, (e, *_) in errors.items()}
    assert metrics.mean_corruption_error(half) == pytest.approx(0.5)
    errors.pop("fog")
    with pytest.raises(ValueError, match="missing or unknown: fog"):
        metrics.mean_corruption_error(errors)


def test_views_are_labelled_and_a_function_of_seed_and_step():
    source = sources.open_source("demo:val")

    def made(seed, start, stop):
        batches = labelled.train_batches(
            source, size=16, seed=seed, batch_size=4, start=start, stop=stop
        )
        found = list(batches)
        batches.close()
        return found

    whole, again, other = made(0, 0, 4), made(0, 2, 4), made(1, 0, 4)
    assert [x.images.shape for x in whole] == [(4, 16, 16, 3)] * 4
    for one, two in zip(whole[2:], again):
        assert (one.images == two.images).all() and (one.labels == two.labels).all()
    assert (whole[0].ids != other[0].ids).any()
    for batch in whole:
        want = [source[int(i)].label for i in batch.ids]
        assert batch.labels.tolist() == want and not len(batch.skipped)


def test_a_pass_shows_each_image_once():
    source = sources.Subset(sources.open_source("demo:val"), np.arange(12))
    batches = labelled.train_batches(
        source, size=8, seed=0, batch_size=4, start=0, stop=3
    )
    ids = np.concatenate([x.ids for x in batches])
    assert sorted(ids) == list(range(12))
    with pytest.raises(ValueError, match="start"):
        labelled.train_batches(source, size=8, seed=0, batch_size=4, start=2, stop=1)


def test_views_are_crops_of_the_image_and_their_mirror_images():
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 64, 0)
    ramp = np.repeat(ramp, 3, 2)
    rising = [
        bool(np.diff(v[..., 0].astype(int).mean(0)).mean() > 0)
        for v in (labelled.view(ramp, 8, np.random.default_rng(i)) for i in range(200))
    ]
    # half of 200, within five standard deviations
    assert 65 < sum(rising) < 135


def test_records_that_do_not_decode_are_replaced():
    class Some:
        classes = ("a", "b")

        def __len__(self):
            return 4

        def __getitem__(self, index):
            image = b"none" if index == 1 else np.full((8, 8, 3), index, np.uint8)
            return sources.Record(image, index % 2)

        def name(self, index):
            return str(index)

    batches = list(
        labelled.train_batches(
            Some(), size=4, seed=0, batch_size=4, start=0, stop=2, threads=1
        )
    )
    assert all(set(x.skipped.tolist()) == {1} for x in batches)
    for batch in batches:
        assert (batch.images[:, 0, 0, 0] == batch.ids).all() and 1 not in batch.ids
        assert (batch.labels == batch.ids % 2).all()
