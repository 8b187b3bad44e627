"""Logistic regression against scikit-learn on real scans of digits."""

import jax
import numpy as np
import pytest

from dinov2_jax.evals import logreg

sklearn = pytest.importorskip("sklearn", reason="needs the extra 'test'")

from sklearn import datasets, linear_model


@pytest.fixture(scope="module")
def digits():
    """(train rows, labels, other rows, labels) of 8 x 8 scans, unit length."""
    x, y = datasets.load_digits(return_X_y=True)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return x[:300], y[:300], x[300:800], y[300:800]


def theirs(x, y, c: float):
    """scikit-learn's classifier, and our measure of its loss."""
    model = linear_model.LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(x, y)
    logits = x @ model.coef_.T + model.intercept_
    logits -= logits.max(1, keepdims=True)
    right = logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(1))
    penalty = 0.5 * (model.coef_**2).sum() / (c * len(x))
    return model, penalty - right.mean()


CS = [1e-2, 1.0, 100.0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_loss_and_predictions_are_those_of_scikit_learn(digits, dtype):
    x, y, others, labels = digits
    found = logreg.fit(x, y, 10, CS, dtype=dtype)
    guessed = logreg.guesses(found, others)
    for number, c in enumerate(CS):
        model, loss = theirs(x, y, c)
        assert found.loss[number] == pytest.approx(loss, rel=1e-4, abs=1e-7)
        if dtype == "float64":
            assert (guessed[number] == model.predict(others)).all()
        else:  # rows on the border between two classes may fall to either side
            assert (guessed[number] != model.predict(others)).sum() <= 1
    best = (guessed == labels).mean(1).max()
    assert best > 0.93


def test_both_precisions_agree(digits):
    x, y, others, _ = digits
    double, single = (logreg.fit(x, y, 10, CS, dtype=d) for d in ("float64", "float32"))
    np.testing.assert_allclose(single.loss, double.loss, rtol=1e-4, atol=1e-6)
    same = logreg.guesses(single, others) == logreg.guesses(double, others)
    assert same.mean() > 0.999
    assert double.kernel.dtype == np.float64 and not jax.config.jax_enable_x64


def test_a_c_that_starts_from_another_ends_where_it_does_alone(digits):
    x, y, _, _ = digits
    together = logreg.fit(x, y, 10, CS[::-1])
    assert together.kernel.shape == (3, 64, 10)
    for number, c in enumerate(CS[::-1]):
        alone = logreg.fit(x, y, 10, [c])
        # each stops by its own rule; where, depends on the way there
        assert together.loss[number] == pytest.approx(alone.loss[0], rel=1e-11)
        np.testing.assert_allclose(together.kernel[number], alone.kernel[0], atol=1e-4)


def test_c_is_chosen_on_rows_held_out_and_all_rows_are_fitted_again(digits):
    x, y, others, _ = digits
    found = logreg.sweep(x, y, 10, CS, held_out=0.1, seed=3)
    order = np.random.default_rng(3).permutation(len(x))
    out, rest = order[:30], order[30:]
    shares = [theirs(x[rest], y[rest], c)[0].score(x[out], y[out]) for c in CS]
    np.testing.assert_allclose(found.accuracies, shares, atol=1e-9)
    assert found.c == CS[int(np.argmax(shares))]
    model, _ = theirs(x, y, found.c)
    assert (logreg.guesses(found.fit, others)[0] == model.predict(others)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 1, 2])}, "5 rows with 3 labels"),
        ({"x": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "0 rows"),
        ({"labels": np.array([0, 1, 2, 3, 0])}, "from 0 to 3; they must lie in 0 to 2"),
        ({"labels": np.array([0, -1, 2, 1, 0])}, "from -1 to 2"),
        ({"cs": [1.0, 0.0]}, "must be one positive number or more"),
        ({"cs": []}, "must be one positive number or more"),
        ({"dtype": "float16"}, "choose one of float64, float32"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    given = {"x": np.ones((5, 2)), "labels": np.array([0, 1, 2, 1, 0]), "cs": [1.0]}
    given |= {"classes": 3} | change
    with pytest.raises(ValueError, match=message):
        logreg.fit(**given)


def test_a_share_that_leaves_no_row_is_refused():
    x, labels = np.ones((5, 2)), np.array([0, 1, 2, 1, 0])
    with pytest.raises(ValueError, match="holds out 0"):
        logreg.sweep(x, labels, 3, [1.0], held_out=0.05)
