"""Segmentation: loss and scores beside float64 and scikit-learn, and coins found."""

import itertools
import json
import pathlib

import cv2
import densefiles
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
import pytest
import safetensors.numpy

from dinov2_jax import zoo
from dinov2_jax.cli import (
    evaluate_segmentation,
    evaluate_segmentation_ms,
    results,
    windows,
)
from dinov2_jax.data import dense, dense_views
from dinov2_jax.evals import probe, segmentation
from dinov2_jax.models import probes


def drawn(seed: int = 0, classes: int = 5):
    """Logits [2 6 7 K] and labels, some of them ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, classes, (2, 6, 7)).astype(np.int32)
    return rng.normal(size=(2, 6, 7, classes)).astype(np.float32), labels


def test_the_loss_is_the_cross_entropy_of_labelled_pixels_over_all():
    logits, labels = drawn()
    x = logits.astype(np.float64)
    logp = x - np.log(np.exp(x).sum(-1, keepdims=True))
    want = -sum(logp[i][labels[i]] for i in np.ndindex(labels.shape) if labels[i] >= 0)
    got = segmentation.cross_entropy(logits, labels)
    np.testing.assert_allclose(got, want / labels.size, rtol=1e-5)  # float32
    slope = jax.grad(segmentation.cross_entropy)(logits, labels)
    assert (np.asarray(slope)[labels < 0] == 0).all()
    with pytest.raises(ValueError, match="differ in B, H or W"):
        segmentation.cross_entropy(logits[:, 1:], labels)


def test_the_confusion_matrix_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = np.random.default_rng(0)
    _, labels = drawn()
    found = np.where(rng.random(labels.shape) < 0.6, np.maximum(labels, 0), 3)
    matrix = segmentation.confusion(labels, found, 6)
    seen = labels >= 0
    want = sklearn.confusion_matrix(labels[seen], found[seen], labels=range(6))
    np.testing.assert_array_equal(matrix, want)
    scores = segmentation.scores(matrix)
    iou = sklearn.jaccard_score(
        labels[seen], found[seen], labels=range(5), average=None
    )
    np.testing.assert_allclose(scores.iou[:5], iou, rtol=1e-12)
    assert np.isnan(scores.iou[5])  # in neither truth nor prediction
    assert scores.miou == pytest.approx(iou.mean(), rel=1e-12)
    accuracy = sklearn.accuracy_score(labels[seen], found[seen])
    assert scores.pixel_accuracy == pytest.approx(accuracy, rel=1e-12)
    recall = sklearn.balanced_accuracy_score(labels[seen], found[seen])
    assert scores.mean_accuracy == pytest.approx(recall, rel=1e-12)


def test_a_class_that_is_only_predicted_has_no_overlap():
    labels, found = np.array([0, 0, 1, -1]), np.array([0, 2, 1, 2])
    scores = segmentation.scores(segmentation.confusion(labels, found, 4))
    np.testing.assert_array_equal(scores.iou, [0.5, 1, 0, np.nan])
    assert scores.miou == 0.5 and scores.mean_accuracy == 0.75


def test_what_cannot_be_counted_is_refused():
    one = np.zeros(3, int)
    with pytest.raises(ValueError, match=r"labels run from 0 to 7; with 3 classes"):
        segmentation.confusion(np.array([0, 1, 7]), one, 3)
    with pytest.raises(ValueError, match=r"predictions run from -1 to 0"):
        segmentation.confusion(one, np.array([0, -1, 0]), 3)
    with pytest.raises(ValueError, match="differ"):
        segmentation.confusion(one, one[1:], 3)
    with pytest.raises(ValueError, match="all of them are ignored"):
        segmentation.scores(np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(20, 8, 5), (8, 8, 8), (5, 8, 3)]
)
def test_windows_cover_every_pixel(length, window, stride):
    places = segmentation.starts(length, window, stride)
    covered = set().union(*(range(p, p + window) for p in places))
    assert covered >= set(range(length)) and places[0] == 0
    assert max(places) + window == max(length, window)
    assert all(b - a <= stride for a, b in itertools.pairwise(places))
    with pytest.raises(ValueError, match=r"stride=9 must lie in 1\.\.8"):
        segmentation.starts(20, 8, 9)


def plainly(image: np.ndarray, logits, s) -> np.ndarray:
    """Mean probabilities by adding up whole pictures, in float64."""

    def grown(x, size):
        rows, columns = (
            probes.bilinear_weights(n, m, False) for n, m in zip(x.shape[:2], size)
        )
        return np.einsum("Hh,Ww,hwk->HWk", rows, columns, x)

    total = 0.0
    for scale in s.scales:
        size = dense_views.scaled_size(image, s.side, scale)
        scaled = dense_views.resized(image, size)
        for flip in (False, True)[: 1 + s.mirrored]:
            one = scaled[:, ::-1] if flip else scaled
            one = dense_views.padded(one, (s.crop, s.crop), dense_views.PADDING)
            whole, count = np.zeros((*one.shape[:2], 3)), np.zeros((*one.shape[:2], 1))
            for y in segmentation.starts(size[0], s.crop, s.stride):
                for x in segmentation.starts(size[1], s.crop, s.stride):
                    place = slice(y, y + s.crop), slice(x, x + s.crop)
                    made = logits(one[place][None])[0].astype(np.float64)
                    whole[place] += grown(made, (s.crop, s.crop))
                    count[place] += 1
            made = grown((whole / count)[: size[0], : size[1]], image.shape[:2])
            e = np.exp(made - made.max(-1, keepdims=True))
            share = e / e.sum(-1, keepdims=True)
            total = total + (share[:, ::-1] if flip else share)
    return total


def test_windows_scales_and_mirrors_give_what_adding_up_pictures_gives():
    s = densefiles.job(
        evaluate_segmentation_ms,
        None,
        ("", ""),
        pathlib.Path(),
        crop=32,
        side=40,
        stride=20,
        scales=(0.6, 1.0, 1.5),
    ).settings
    weights = np.random.default_rng(0).normal(size=(3, 3)) / 40

    def logits(images):  # the mean colour of each 8 x 8 pixels, mixed
        n, side = len(images), s.crop // 8
        cells = images.reshape(n, side, 8, side, 8, 3).mean((2, 4))
        return (cells @ weights).astype(np.float32)

    names = ("chelsea", "coffee", "rocket")
    images = [cv2.resize(densefiles.demo.photograph(n), (70, 50)) for n in names]
    images[1] = images[1][:, :33]
    pairs = [dense.Pair(x, np.zeros(x.shape[:2], np.int32)) for x in images]
    found = list(windows.predictions(enumerate(pairs), logits, 7, s))
    assert [number for number, *_ in found] == [0, 1, 2]
    assert [pair.image.shape for _, pair, _ in found] == [x.shape for x in images]
    for _, pair, got in found:
        want = plainly(pair.image, logits, s)
        np.testing.assert_array_equal(got.shape, pair.target.shape)
        top = np.sort(want, -1)
        # Sums in another order decide where two classes are equally probable.
        clear = top[..., -1] - top[..., -2] > 1e-4
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(got[clear], want.argmax(-1)[clear])


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_rises_and_falls(decay):
    at = probe.rate(0.5, 100, warmup=10, warmup_start=0.1, decay=decay, floor=0.02)
    for step in (0, 3, 9, 10, 55, 99, 100):
        done = step / 100
        left = 1 - done if decay == "linear" else (1 + np.cos(np.pi * done)) / 2
        want = 0.5 * (0.02 + 0.98 * left)
        if step < 10:
            want *= 1 - (1 - step / 10) * (1 - 0.1)
        assert float(at(step)) == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match="decay='step' must be linear or cosine"):
        probe.rate(1.0, 10, decay="step")
    with pytest.raises(ValueError, match="warmup=11 steps of 10"):
        probe.rate(1.0, 10, warmup=11)


def test_training_compiles_once_and_stops_at_a_loss_that_is_not_finite():
    head = probes.LinearSegmentation(2)

    def features(frozen, images):
        x = images.astype(jnp.float32) * frozen["scale"]
        return [(x, x.mean((1, 2)))]

    def loss(logits, labels, step):
        return segmentation.cross_entropy(logits, labels)

    frozen = {"scale": jnp.float32(0.01)}
    optimizer = probe.adamw(probe.rate(0.1, 30), 1e-4, clip=1.0)
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    labels = (images[..., 1] > 128).astype(np.int32)
    layers = jax.eval_shape(features, frozen, images)
    update = probe.updates(head, features, loss, optimizer, True)

    def start():
        return probe.start(head, layers, optimizer, jax.random.key(0))

    told = []
    state, losses = probe.fit(
        update,
        start(),
        frozen,
        [(images, labels)] * 30,
        lambda *one: told.append(one),
        every=7,
    )
    assert [step for step, _ in told] == [7, 14, 21, 28, 30] and told == losses
    assert losses[-1][1] < 0.5 * losses[0][1] and int(state.step) == 30
    assert update._cache_size() == 1
    mean = np.asarray(state.stats["batch_stats"]["bn"]["mean"])
    # 30 steps of momentum 0.9 leave 4 % of the zero it began with.
    want = 0.01 * images.astype(float).mean((0, 1, 2)) * (1 - 0.9**30)
    np.testing.assert_allclose(mean, want, rtol=1e-4)
    endless = [(images, labels)]
    with pytest.raises(ValueError, match="The loss of the head is nan by step 1"):
        probe.fit(update, start(), {"scale": jnp.float32(np.nan)}, endless, told.append)


@pytest.mark.torch
def test_the_optimiser_is_torchs_adamw():
    torch = peers.package("torch", "torch")
    rng = np.random.default_rng(0)
    first, slopes = rng.normal(size=5), rng.normal(size=(20, 5))
    optimizer = probe.adamw(lambda step: 0.01, 0.1, (0.9, 0.99), clip=2.0)
    ours = jnp.asarray(first, jnp.float32)
    state = optimizer.init(ours)
    theirs = torch.nn.Parameter(torch.tensor(first))
    peer = torch.optim.AdamW([theirs], 0.01, (0.9, 0.99), weight_decay=0.1)
    for slope in slopes:
        change, state = optimizer.update(jnp.asarray(slope, jnp.float32), state, ours)
        ours = optax.apply_updates(ours, change)
        theirs.grad = torch.tensor(slope)
        torch.nn.utils.clip_grad_norm_([theirs], 2.0)
        peer.step()
    # float32, and PyTorch's 1e-6 in the divisor of the norm
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


SMALL = {
    "steps": 40,
    "batch_size": 8,
    "crop": 64,
    "side": 128,
    "ratio": (0.8, 1.25),
    "warmup": 4,
    "lr": 0.02,
    "stride": 48,
    "test_batch": 8,
    "log_every": 10,
    "save_every": 20,
}


def test_coins_are_found_by_a_head_that_others_can_load(tmp_path):
    backbone = densefiles.backbone(depth=2)
    specs = densefiles.coin_folders(tmp_path)
    out = tmp_path / "out"
    job = densefiles.job(evaluate_segmentation, backbone, specs, out, **SMALL)
    outcome = evaluate_segmentation.run(job)
    metrics = outcome.metrics
    assert metrics["miou"] > 0.7 > 2 * metrics["majority_miou"]
    assert metrics["pixel_accuracy"] > metrics["majority_accuracy"] + 0.2
    ious = [metrics["iou/ground"], metrics["iou/coin"]]
    assert metrics["miou"] == pytest.approx(np.mean(ious))
    (picture,) = outcome.pictures
    assert picture.pixels.dtype == np.uint8 and picture.pixels.ndim == 3
    assert [row[0] for row in outcome.tables[0].rows] == sorted(
        ("ground", "coin"), key=lambda name: metrics[f"iou/{name}"]
    )
    about = results.write(job, outcome, 1.0)
    assert json.loads((out / "results.json").read_text())["metrics"] == metrics
    assert about["metric"] == "miou" and (out / "pictures/segmentation.png").is_file()
    head, variables = zoo.load_head(out / "head.safetensors")
    assert isinstance(head, probes.LinearSegmentation)
    assert variables["params"]["conv_seg"]["kernel"].shape == (1, 1, 48, 2)

    # The training is done: it is not done again, and the head alone gives the same.
    (out / "head.safetensors").rename(tmp_path / "head.safetensors")
    assert evaluate_segmentation.run(job).metrics == metrics
    given = SMALL | {"head": str(tmp_path / "head.safetensors")}
    again = densefiles.job(evaluate_segmentation, backbone, specs, out / "b", **given)
    assert evaluate_segmentation.run(again).metrics == pytest.approx(metrics, abs=1e-6)
    assert not (out / "b").exists()

    other = SMALL | {"lr": 0.5}
    changed = densefiles.job(evaluate_segmentation, backbone, specs, out, **other)
    with pytest.raises(ValueError, match="another training; different are lr"):
        evaluate_segmentation.run(changed)
    wide = densefiles.job(evaluate_segmentation_ms, backbone, specs, out, **given)
    wide.settings.blocks = 2
    with pytest.raises(ValueError, match=r"trained with blocks=\[1\] and not \[0, 1\]"):
        evaluate_segmentation.run(wide)
    # A file of tensors alone, as released ones are
    tensors = safetensors.numpy.load_file(tmp_path / "head.safetensors")
    safetensors.numpy.save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(
        ValueError, match="48 channels and 2 classes; the features have"
    ):
        evaluate_segmentation.run(wide)


@pytest.mark.slow
def test_coins_are_found_over_four_blocks_and_several_scales(tmp_path):
    specs = densefiles.coin_folders(tmp_path)
    settings = SMALL | {"scales": (1.0, 1.32)}
    job = densefiles.job(
        evaluate_segmentation_ms, densefiles.backbone(), specs, tmp_path, **settings
    )
    metrics = evaluate_segmentation_ms.run(job).metrics
    assert metrics["miou"] > 0.8


def test_what_does_not_fit_is_one_line(tmp_path):
    backbone = densefiles.backbone(depth=2)
    specs = densefiles.coin_folders(tmp_path)

    def run(specs=specs, **settings):
        given = SMALL | settings
        job = densefiles.job(evaluate_segmentation, backbone, specs, tmp_path, **given)
        evaluate_segmentation.run(job)

    for lines, told in (
        ({"batch_size": 9}, "batch_size=9 does not divide over 8 devices"),
        ({"blocks": 3}, "blocks=3; these weights have 2"),
        ({"stride": 65}, "stride=65 must lie in"),
        ({"ratio": (2.0, 1.0)}, r"expected \(least, most\)"),
        ({"warmup": 99}, "warmup=99 steps of 40"),
        ({"head": "nothing.pth"}, "is no file and no released head"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            run(**lines)
        assert "\n" not in str(caught.value)
    (tmp_path / "val/maps/classes.txt").write_text("ground\nmoon\n")
    with pytest.raises(
        ValueError, match="val has 2 classes, of which 1 are not among .*moon"
    ):
        run()
