"""Sweeps over C: they resume at any C, whatever the devices, and match scikit-learn."""

import json
import signal
import subprocess
import sys

import jax
import numpy as np
import peers
import pytest
from PIL import Image

from dinov2_jax import __main__ as command
from dinov2_jax.convert import export, names
from dinov2_jax.evals import lbfgs, logreg, manylabel

sklearn = pytest.importorskip("sklearn", reason="needs the extra 'test'")

from sklearn import linear_model

CS = 10 ** np.linspace(-6, 5, 12)


@pytest.fixture(scope="module")
def rows():
    """120 rows of unit length of 5 overlapping classes, far from 0, and 60 others."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 40))
    labels = rng.integers(0, 5, 180)
    x = rng.normal(size=(180, 40)) + 0.8 * means[labels] + rng.normal(size=40)
    x = x / np.arange(1, 41)  # some directions matter more than others
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x[:120], labels[:120], x[120:], labels[120:]


def targets_of(labels: np.ndarray) -> np.ndarray:
    """[n 3] labels of which an image may have several; some do not count."""
    targets = np.stack([labels % 2 == 0, labels > 2, labels == 1], 1).astype(np.int8)
    targets[::7, 1] = -1
    return targets


def objective(model, x, labels, c: float) -> float:
    """What a classifier of scikit-learn reached, by our measure."""
    logits = model.decision_function(x)
    right = logits[np.arange(len(x)), labels]
    high = logits.max(1)
    losses = np.log(np.exp(logits - high[:, None]).sum(1)) + high - right
    return 0.5 * (model.coef_**2).sum() / (c * len(x)) + losses.mean()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_whole_protocol_is_no_worse_than_that_of_scikit_learn(rows):
    x, labels, others, truth = rows
    weights, out = logreg.held_out_rows(len(x), 0.1, 0)
    rest, wide = weights > 0, x.astype(np.float64)
    passed = []
    found = logreg.sweep(x, labels, 5, CS, after=passed.append)
    shares = []
    for c, partial in zip(CS, passed, strict=True):
        model = linear_model.LogisticRegression(C=c, tol=1e-12, max_iter=1000)
        model.fit(wide[rest], labels[rest])
        shares.append(model.score(wide[out], labels[out]))
        bound = objective(model, wide[rest], labels[rest], c)
        # sums over rows are rounded in another order
        assert partial.last.loss <= bound * (1 + 1e-12)
        assert partial.last.loss == pytest.approx(bound, rel=1e-6)
    assert found.c == CS[int(np.argmax(shares))]
    np.testing.assert_allclose(found.accuracies, shares, atol=1e-12)
    model = linear_model.LogisticRegression(C=found.c, tol=1e-12, max_iter=1000)
    guess = model.fit(wide, labels).predict(others)
    assert (logreg.guesses(found.fit, others)[0] == guess).all()
    assert (guess == truth).mean() > 0.5


def test_blocks_of_rows_change_nothing_but_rounding(rows, monkeypatch):
    x, labels = rows[0][:113], rows[1][:113]
    for module, targets in ((logreg, labels), (manylabel, targets_of(labels))):
        classes = (5,) if module is logreg else ()
        whole = module.fit(x, targets, *classes, [1.0, 100.0])
        monkeypatch.setattr(
            lbfgs, "ENTRIES", 1400
        )  # four blocks, the last one filled up
        parts = module.fit(x, targets, *classes, [1.0, 100.0])
        monkeypatch.undo()
        np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-12)
        np.testing.assert_allclose(parts.kernel, whole.kernel, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_rows_than_features_are_fitted_as_by_scikit_learn(classes, rows):
    x, labels, others, _ = rows
    few, own = x[:20], labels[:20] % classes
    found = logreg.fit(few, own, classes, [1.0])
    model = linear_model.LogisticRegression(C=1.0, tol=1e-12, max_iter=1000)
    wide = few.astype(np.float64)
    p = model.fit(wide, own).predict_proba(others.astype(np.float64))
    logits = others @ found.kernel[0] + found.bias[0]
    mine = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # their solver stops where its loss no longer changes, near 1e-7 of its parameters
    np.testing.assert_allclose(mine, p, atol=1e-5)


def test_equal_rows_leave_the_intercept_alone():
    found = logreg.fit(np.ones((6, 3)), np.array([0, 0, 0, 0, 1, 1]), 2, [1.0])
    p = np.exp(found.bias[0]) / np.exp(found.bias[0]).sum()
    np.testing.assert_allclose(p, [4 / 6, 2 / 6], atol=1e-9)


@pytest.mark.parametrize("kind", ["one label", "several labels"])
def test_a_sweep_resumes_after_any_c_to_the_same_bits(kind, rows):
    x, labels, _, _ = rows

    def sweep(**state):
        if kind == "one label":
            return logreg.sweep(x, labels, 5, CS, **state)
        return manylabel.sweep(x, targets_of(labels), CS, held_out=0.3, **state)

    passed = []
    whole = sweep(after=passed.append)
    assert [len(p.scores) for p in passed] == list(range(1, len(CS) + 1))
    for partial in passed[::3]:
        resumed = sweep(partial=partial)
        assert resumed.c == whole.c
        for mine, other in zip(resumed.fit, whole.fit):
            np.testing.assert_array_equal(mine, other)


def test_any_device_gives_the_same_bits(rows):
    x, labels, _, _ = rows
    fits = []
    for device in (jax.devices()[0], jax.devices()[-1]):
        with jax.default_device(device):
            fits.append(logreg.sweep(x, labels, 5, CS))
    for mine, other in zip(*(sweep.fit for sweep in fits)):
        np.testing.assert_array_equal(mine, other)


def test_features_that_are_not_finite_are_refused():
    x = np.ones((5, 2))
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="numbers that are not finite"):
        logreg.fit(x, np.array([0, 1, 0, 1, 0]), 2, [1.0])


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The command line of a sweep over noise in three shades, without --out."""
    home, rng = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 30)):
        for i in range(count):
            path = home / split / f"shade{i % 3}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 200, (32, 32, 3)) + 20 * (i % 3)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    built = peers.model(patch_size=8, image_size=32)
    state = names.backbone_to_official(peers.params(built), 8)
    export.write_safetensors(home / "model.safetensors", state, export.about(built))
    given = ["evaluate", "logreg", f"--weights={home / 'model.safetensors'}"]
    given += [f"--{x}=folder:{home / x}" for x in ("train", "val")]
    given += [f"--cache={home / 'features'}"]
    return given + [f"--set={x}" for x in ("resize=32", "crop=32", "batch_size=8")]


def results(out) -> dict:
    """What two runs of the same command must share."""
    about = json.loads((out / "results.json").read_text())
    with np.load(out / "training" / "sweep.npz") as state:
        arrays = {name: state[name].tobytes() for name in state.files}
    return about["metrics"], (out / "predictions.parquet").read_bytes(), arrays


def test_a_killed_sweep_resumes_at_its_c(task, tmp_path, capsys):
    assert command.main([*task, f"--out={tmp_path / 'whole'}"]) == 0
    lines = capsys.readouterr().err.splitlines()
    counted = [line for line in lines if line.startswith("C ")]
    assert len(counted) == 45 and counted[0].startswith("C 1/45 ")
    assert "C 1e-06 scores " in counted[0] and ", best C " in counted[-1]
    given = [*task, f"--out={tmp_path / 'out'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dinov2_jax", *given], stderr=subprocess.PIPE, text=True
    )
    while not (line := process.stderr.readline()).startswith("C 5/"):
        assert line, "it ended before the fifth C"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "results.json").exists()
    assert command.main(given) == 0
    lines = capsys.readouterr().err.splitlines()
    first = next(line for line in lines if line.startswith("C "))
    assert 5 < int(first.removeprefix("C ").partition("/")[0]) < 46
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_a_sweep_of_other_values_is_not_mixed_with_the_one_that_is_there(
    task, tmp_path, capsys
):
    given = [*task, f"--out={tmp_path / 'out'}", "--set=number=3"]
    assert command.main(given) == 0
    assert command.main([*given, "--set=metric=mean_per_class"]) == 0
    capsys.readouterr()
    assert command.main([*given, "--set=highest=2"]) == 1
    assert "different are highest" in capsys.readouterr().err.splitlines()[-1]
