"""Depth: losses and errors beside float64, and the depth of a real scene."""

import densefiles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import zoo
from dinov2_jax.cli import (
    depth_errors,
    evaluate_depth,
    evaluate_depth_kitti,
)
from dinov2_jax.data import dense
from dinov2_jax.evals import depth, probe
from dinov2_jax.models import probes
from dinov2_jax.viz import dense as viz


def drawn(seed: int = 0, shape: tuple[int, ...] = (2, 18, 25)):
    """Predicted and true metres; some unknown, some too far."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 12, shape)
    truth[rng.random(shape) < 0.2] = 0
    made = np.clip(truth * rng.uniform(0.7, 1.4, shape), 0.1, 10)
    return made.astype(np.float32), truth.astype(np.float32)


def sigmoid_log(made, truth, early: bool) -> float:
    """The loss in float64."""
    known = (truth > 0) & (truth <= 10)
    g = np.log(made[known] + 1e-3) - np.log(truth[known] + 1e-3)
    return np.sqrt((0 if early else g.var(ddof=1)) + 0.15 * g.mean() ** 2)


def gradient(made, truth) -> float:
    """The loss in float64, pixel by pixel of its definition."""
    total = 0.0
    for every in (1, 2, 4, 6):
        m, t = made[:, ::every, ::every], truth[:, ::every, ::every]
        known = (t > 0) & (t <= 10)
        g = np.where(known, np.log(m + 1e-3) - np.log(np.where(known, t, 1) + 1e-3), 0)
        part = 0.0
        for axis in (1, 2):
            a, b = (np.take(g, range(i, g.shape[axis] - 2 + i), axis) for i in (0, 2))
            u, v = (
                np.take(known, range(i, g.shape[axis] - 2 + i), axis) for i in (0, 2)
            )
            part += np.abs(a - b)[u & v].sum()
        total += part / known.sum()
    return total


def test_losses_are_those_of_their_definition():
    made, truth = drawn()
    wide = made.astype(np.float64), truth.astype(np.float64)
    for step, early in ((0, True), (99, True), (100, False)):
        got = depth.sigmoid_log(made, truth, step)
        assert float(got) == pytest.approx(sigmoid_log(*wide, early), rel=1e-5)
    got = float(depth.gradient(made, truth))
    assert got == pytest.approx(gradient(*wide), rel=1e-5)  # float32 sums
    # A factor for all changes only the mean, and no slope (but for the EPS in logs).
    near = jnp.where(truth > 0, truth, 1.0)
    assert float(depth.sigmoid_log(2 * near, truth, 500)) == pytest.approx(
        np.sqrt(0.15) * np.log(2), abs=1e-3
    )
    assert float(depth.gradient(2 * near, truth)) < 2e-3


@jax.jit
@jax.value_and_grad
def slopes(made, truth):
    """Both losses, with their gradient."""
    return depth.sigmoid_log(made, truth, 500) + depth.gradient(made, truth)


@pytest.mark.parametrize("kind", ["all unknown", "one pixel", "perfect", "some"])
def test_gradients_of_the_losses_are_finite(kind):
    made, truth = drawn()
    if kind == "all unknown":
        truth = 0 * truth
    elif kind == "one pixel":
        truth = np.where(np.arange(truth.size).reshape(truth.shape) == 7, 3, 0)
    elif kind == "perfect":
        made = truth = np.maximum(truth, 0.5)

    value, slope = slopes(jnp.asarray(made), jnp.asarray(truth, jnp.float32))
    assert np.isfinite(value) and np.isfinite(slope).all()
    known = (truth > 0) & (truth <= 10)
    assert (np.asarray(slope)[~known] == 0).all()
    assert kind != "some" or (np.asarray(slope)[known] != 0).mean() > 0.9
    assert kind != "all unknown" or value == 0


def test_errors_are_those_of_their_definition():
    made, truth = (x[0].astype(np.float64) for x in drawn(1))
    known = (truth > 1e-3) & (truth < 10)
    pairs = [(made[i], truth[i]) for i in np.ndindex(truth.shape) if known[i]]
    n, got = len(pairs), depth.metrics(made, truth)
    want = {
        "rmse": np.sqrt(sum((d - t) ** 2 for d, t in pairs) / n),
        "rmse_log": np.sqrt(sum(np.log(d / t) ** 2 for d, t in pairs) / n),
        "abs_rel": sum(abs(d - t) / t for d, t in pairs) / n,
        "sq_rel": sum((d - t) ** 2 / t for d, t in pairs) / n,
        "log10": sum(abs(np.log10(d / t)) for d, t in pairs) / n,
        "silog": 100 * np.std([np.log(d / t) for d, t in pairs]),
    }
    for power in (1, 2, 3):
        near = [max(d / t, t / d) < 1.25**power for d, t in pairs]
        want[f"delta{power}"] = sum(near) / n
    assert got == pytest.approx(want, rel=1e-9)
    assert tuple(got) == tuple(want) == depth.METRICS
    perfect = depth.metrics(truth, truth)
    assert perfect["rmse"] == 0 and perfect["delta1"] == 1
    assert depth.metrics(truth, 0 * truth) == {}
    with pytest.raises(ValueError, match="differ"):
        depth.metrics(made[1:], truth)
    with pytest.raises(ValueError, match="the head has diverged"):
        depth.metrics(np.where(known, made, np.nan), truth)


def test_errors_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    made, truth = (x[0].astype(np.float64) for x in drawn(2))
    known = (truth > 1e-3) & (truth < 10)
    d, t = made[known], truth[known]
    got = depth.metrics(made, truth)
    assert got["rmse"] == pytest.approx(sklearn.root_mean_squared_error(t, d))
    relative = sklearn.mean_absolute_percentage_error(t, d)
    assert got["abs_rel"] == pytest.approx(relative)


def test_what_lies_outside_the_range_or_the_crop_does_not_count():
    truth = np.full((480, 640), 2.0)
    made, outside = truth.copy(), ~depth.inside((480, 640), "nyu")
    made[outside] = 50.0
    assert depth.metrics(made, truth, crop="nyu")["rmse"] == 0
    # Outside of the crop all errors are those of 10 m, the end of the range.
    found = depth.metrics(made, truth)["rmse"]
    assert found == pytest.approx(8 * np.sqrt(outside.mean()))
    assert outside.mean() == pytest.approx(1 - 426 * 560 / (480 * 640))


def test_crops_of_kitti_are_shares_of_its_images():
    for crop, rows, columns in (
        ("garg", (153, 371), (44, 1197)),
        ("eigen", (124, 342), (44, 1197)),
    ):
        want = np.zeros((375, 1242), bool)
        want[slice(*rows), slice(*columns)] = True
        np.testing.assert_array_equal(depth.inside((375, 1242), crop), want)
    assert depth.inside((3, 4), "none").all()
    with pytest.raises(ValueError, match="for images of 480x640 pixels, not 375x1242"):
        depth.inside((375, 1242), "nyu")
    with pytest.raises(ValueError, match="crop='middle' is unknown"):
        depth.inside((3, 4), "middle")


def test_heads_see_the_blocks_of_the_released_ones():
    assert evaluate_depth.blocks(12, "lin4") == (2, 5, 8, 11)
    assert evaluate_depth.blocks(24, "dpt") == (4, 11, 17, 23)
    assert evaluate_depth.blocks(40, "lin4") == (9, 19, 29, 39)
    assert evaluate_depth.blocks(6, "lin4") == (0, 2, 3, 5)
    assert evaluate_depth.blocks(40, "lin1") == (39,)
    with pytest.raises(
        ValueError, match="lin4 sees 4 blocks, but these weights have 3"
    ):
        evaluate_depth.blocks(3, "lin4")


def test_pairs_of_one_size_are_judged_together():
    def pair(side):
        return dense.Pair(np.zeros((side, 4, 3), np.uint8), np.zeros((side, 4)))

    sides = [4, 4, 4, 5, 4, 4]
    groups = depth_errors.alike(enumerate(map(pair, sides)), 2)
    found = [[(n, len(pair.target)) for n, pair in group] for group in groups]
    assert found == [[(0, 4), (1, 4)], [(2, 4)], [(3, 5)], [(4, 4), (5, 4)]]


SMALL = {
    "method": "lin1",
    "steps": 60,
    "batch_size": 8,
    "crop": (160, 40),
    "border": (0, 0, 0, 0),
    "degrees": 0.0,
    "bins": 16,
    "upsample": 2,
    "channels": 8,
    "min_depth": 1.0,
    "max_depth": 6.0,
    "lr": 0.02,
    "warmup": 5,
    "gradient_weight": 0.05,
    "loss_warmup": 10,
    "eval_crop": "none",
    "test_batch": 8,
    "log_every": 20,
}


def plane(height: int = 160, width: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """A made-up scene: a floor that recedes, its pattern finer where it is far."""
    metres = np.linspace(5.5, 1.5, height)[:, None] + np.zeros(width)
    across = np.arange(width)[None] * metres / 20
    pattern = 127 * (1 + np.sign(np.sin(across) * np.sin(40 / metres)))
    return np.repeat(pattern.astype(np.uint8)[..., None], 3, 2), metres


@pytest.mark.torch  # again where scikit-image is installed
def test_the_depth_of_a_scene_is_learnt(tmp_path):
    """The stereo pair's, where scikit-image is installed, else of a made-up floor."""
    specs = densefiles.scene_folders(tmp_path, plane)
    backbone, out = densefiles.backbone(), tmp_path / "out"
    job = densefiles.job(evaluate_depth, backbone, specs, out, **SMALL)
    outcome = evaluate_depth.run(job)
    train, val = (dense.open_depth(spec) for spec in specs)
    known = np.concatenate([x.target[x.target > 0] for x in train])
    flat = [
        depth.metrics(
            np.full_like(x.target, known.mean()), x.target, min_depth=1.0, max_depth=6.0
        )
        for x in val
    ]
    for key in ("rmse", "abs_rel", "log10"):
        assert outcome.metrics[key] < 0.95 * np.mean([one[key] for one in flat])
    assert outcome.metrics["delta1"] > np.mean([one["delta1"] for one in flat])
    assert outcome.pictures[0].pixels.ndim == 3
    head, _ = zoo.load_head(out / "head.safetensors", max_depth=6.0)
    assert isinstance(head, probes.LinearDepth) and head.bins == 16


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lin4", "dpt"])
def test_heads_over_four_blocks_are_trained_and_judged(method, tmp_path):
    specs = densefiles.scene_folders(tmp_path, plane)
    given = SMALL | {"method": method, "steps": 12, "warmup": 2, "crop": (32, 32)}
    job = densefiles.job(
        evaluate_depth, densefiles.backbone(), specs, tmp_path / "out", **given
    )
    metrics = evaluate_depth.run(job).metrics
    assert 0 < metrics["rmse"] < 3
    given["head"] = str(tmp_path / "out/head.safetensors")
    again = densefiles.job(evaluate_depth, job.backbone, specs, tmp_path / "b", **given)
    assert evaluate_depth.run(again).metrics == pytest.approx(metrics, rel=1e-5)


@pytest.mark.slow
def test_a_dpt_head_learns_on_its_own():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(4, 2, 2, 2, 8)).astype(np.float32)
    layers = [(jnp.asarray(x), jnp.asarray(x.mean((1, 2)))) for x in maps]
    truth = np.linspace(1, 5, 2 * 32 * 32).reshape(2, 32, 32).astype(np.float32)
    head = probes.DPTDepth((2, 2, 4, 8), 8)
    optimizer = probe.adamw(probe.rate(0.01, 40, decay="cosine"), 0.0)

    def loss(made, target, step):
        return depth.sigmoid_log(made, target, step, warmup=0)

    state = probe.start(head, layers, optimizer, jax.random.key(0))
    update = probe.updates(head, lambda frozen, images: layers, loss, optimizer)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    _, told = probe.fit(
        update, state, {}, [(images, truth)] * 40, lambda *_: None, every=5
    )
    assert told[-1][1] < 0.5 * told[0][1]


def test_what_does_not_fit_is_one_line(tmp_path):
    backbone = densefiles.backbone(depth=2)
    specs = densefiles.scene_folders(tmp_path, plane)

    def run(task=evaluate_depth, **settings):
        given = SMALL | settings
        task.run(densefiles.job(task, backbone, specs, tmp_path, **given))

    for changes, told in (
        ({"method": "dpt"}, "dpt sees 4 blocks, but these weights have 2"),
        ({"border": (45, 472, 43, 608)}, "does not lie in images of 1"),
        ({"crop": (64,)}, r"crop=\(64,\); expected 2 numbers"),
        ({"min_depth": 7.0}, "min_depth=7.0 must lie below"),
        ({"batch_size": 12}, "batch_size=12 does not divide over 8"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            run(**changes)
        assert "\n" not in str(caught.value)
    assert evaluate_depth_kitti.SETTINGS["max_depth"] == 80
    assert evaluate_depth_kitti.SETTINGS.keys() == evaluate_depth.SETTINGS.keys()


def test_pictures_of_predictions_stand_beside_the_truth():
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (40, 24)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    labels = [rng.integers(-1, 3, size) for size in sizes]
    sheet = viz.segmentation_picture(images, labels, labels, 3)
    assert sheet.dtype == np.uint8 and sheet.shape[0] > 2 * viz.TALL
    assert len(np.unique(viz.colors(150), axis=0)) == 150
    painted = viz.painted(images[0], labels[0], 3)
    assert (painted[labels[0] < 0] == viz.UNKNOWN).all()
    metres = [np.where(one < 0, 0, one + 1.0) for one in labels]
    sheet = viz.depth_picture(images, metres, metres)
    assert sheet.shape[0] > 2 * viz.TALL
    near, far = viz.heat(np.array([[1.0, 3.0]]), 1, 3)[0].astype(int).sum(1)
    assert near > far
    with pytest.raises(ValueError, match="row 1 has pictures of sizes"):
        viz.depth_picture(images, metres, [metres[0], metres[0]])
