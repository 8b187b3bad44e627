"""Properties of targets and losses, beside the numbers of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.train import losses


def logits(*shape: int) -> jax.Array:
    """Random logits."""
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def test_sinkhorn_uses_all_prototypes_alike():
    out = losses.sinkhorn_targets(logits(64, 8), 0.5, iterations=50)
    np.testing.assert_allclose(out.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(out.sum(0), 64 / 8, rtol=1e-3)


def test_sinkhorn_survives_large_logits_and_an_empty_batch():
    assert np.isfinite(losses.sinkhorn_targets(1e4 * logits(6, 8), 0.04)).all()
    empty = losses.sinkhorn_targets(logits(6, 8), 0.04, mass=jnp.zeros(6))
    assert (np.asarray(empty) == 0).all()


def test_views_are_never_compared_with_themselves():
    student, targets = logits(3, 4, 5), jax.nn.softmax(logits(3, 2, 5))
    pairs = losses.dino_pairs(student, targets)
    assert pairs[0, 0] == pairs[1, 1] == 0
    by_hand = np.mean(
        [
            -(
                np.asarray(targets[b, u])
                * np.asarray(jax.nn.log_softmax(student[b, v] / 0.1))
            ).sum()
            for b in range(3)
            for v in range(4)
            for u in range(2)
            if u != v
        ]
    )
    np.testing.assert_allclose(pairs.sum(), by_hand, rtol=1e-6)


def test_no_gradient_flows_into_targets():
    student = logits(3, 4, 5)
    grad = jax.grad(lambda t: losses.dino_pairs(student, t).sum())(logits(3, 2, 5))
    assert not grad.any()


@pytest.mark.parametrize(
    ("student", "targets", "message"),
    [((3, 4, 5), (3, 2, 6), "differ in B or K"), ((3, 1, 5), (3, 1, 5), "no pair")],
)
def test_views_that_do_not_fit_are_refused(student, targets, message):
    with pytest.raises(ValueError, match=message):
        losses.dino_pairs(logits(*student), logits(*targets))


def test_ibot_padding_counts_nothing_even_when_it_is_not_finite():
    student, targets = logits(2, 5, 7), jax.nn.softmax(logits(2, 5, 7))
    weights = jnp.array([[0.5, 0.5, 0, 0, 0], [1, 0, 0, 0, 0]])
    spoiled = student.at[:, 3:].set(jnp.inf)
    want = losses.ibot(student, targets, weights, 4)
    np.testing.assert_allclose(
        losses.ibot(spoiled, targets, weights, 4), want, rtol=1e-6
    )


def test_koleo_stays_inside_groups():
    x = logits(2, 6, 4)
    np.testing.assert_allclose(
        losses.koleo(x), [losses.koleo(x[:1])[0], losses.koleo(x[1:])[0]], rtol=1e-6
    )
    with pytest.raises(ValueError, match="groups have 1 image"):
        losses.koleo(logits(2, 1, 4))


def test_patch_centers_weigh_groups_alike():
    x, weights = logits(2, 4, 3), jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]])
    want = (x[0].mean(0) + x[1, 0]) / 2
    np.testing.assert_allclose(losses.mean_patch_logits(x, weights), want, rtol=1e-5)
