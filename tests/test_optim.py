"""The optimiser against a float64 NumPy AdamW; schedules; rules for leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinov2_jax import tree
from dinov2_jax.train import optim, schedules

PARAMS = {
    "backbone": {
        "blocks": {"mlp": {"fc1": {"kernel": (3, 4, 5), "bias": (3, 5)}}},
        "cls_token": (1, 1, 4),
        "norm": {"scale": (4,)},
        "patch_embed": {"kernel": (6, 4)},
    },
    "dino_head": {"last_layer": {"v": (4, 7), "g": (7,)}, "mlp_0": {"kernel": (4, 4)}},
}


def random_tree(seed: int, scale: float = 1.0):
    """PARAMS filled with normal numbers."""
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s) * scale, jnp.float32),
        PARAMS,
        is_leaf=is_shape,
    )


def numpy_adamw(params, grads_of, factors, lr, last_lr, decay, clip, steps):
    """The reference's AdamW, leaf by leaf, in float64."""
    flat, structure = jax.tree.flatten(jax.tree.map(np.float64, params))
    lr_f, wd_f, last = (jax.tree.leaves(f) for f in factors)
    first = [np.zeros_like(p) for p in flat]
    second = [np.zeros_like(p) for p in flat]
    for t in range(steps):
        grads = jax.tree.map(np.float64, grads_of(t))
        for part in grads.values():
            norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(part)))
            factor = min(1.0, clip / (norm + 1e-6))
            for leaf in jax.tree.leaves(part):
                leaf *= factor
        for i, g in enumerate(jax.tree.leaves(grads)):
            rate = (last_lr(t) if last[i] else lr(t)) * lr_f[i]
            flat[i] = flat[i] * (1 - rate * decay(t) * wd_f[i])
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            mean, square = (
                first[i] / (1 - 0.9 ** (t + 1)),
                second[i] / (1 - 0.999 ** (t + 1)),
            )
            flat[i] = flat[i] - rate * mean / (np.sqrt(square) + 1e-8)
    return jax.tree.unflatten(structure, flat)


def test_thirty_updates_equal_adamw_in_float64():
    params = random_tree(0)
    factors = optim.multipliers(params, 0.8, 0.2)
    lr = schedules.cosine(1e-2, 1e-5, 40, 5)
    last = schedules.cosine(1e-2, 1e-5, 40, 5, freeze=8)
    decay = schedules.cosine(0.04, 0.4, 40)
    tx = optim.adamw(factors, clip=3.0)
    grads_of = lambda t: random_tree(100 + t, 2.0)
    state, got = tx.init(params), params
    update = jax.jit(tx.update)
    for t in range(30):
        rates = dict(zip(optim.RATES, (lr(t), last(t), decay(t)), strict=True))
        updates, state = update(grads_of(t), state, got, **rates)
        got = optax.apply_updates(got, updates)
        if t == 7:  # frozen for eight steps
            for name in ("v", "g"):
                before = params["dino_head"]["last_layer"][name]
                assert (got["dino_head"]["last_layer"][name] == before).all()
    want = numpy_adamw(params, grads_of, factors, lr, last, decay, 3.0, 30)
    for name, a, b in zip(tree.names(got), jax.tree.leaves(got), jax.tree.leaves(want)):
        # thirty float32 updates of up to 1e-2
        np.testing.assert_allclose(a, b, atol=3e-6, err_msg=name)


def test_every_leaf_needs_exactly_one_rule():
    params = random_tree(0)
    params["backbone"]["extra"] = jnp.zeros(3)
    with pytest.raises(ValueError, match="'backbone/extra' matches 0 rules"):
        optim.multipliers(params)
    with pytest.raises(ValueError, match="matches 2 rules"):
        tree.by_rule({".*": 1, "a.*": 2}, {"ab": 0})


def test_clipping_is_per_sub_network_and_can_be_off():
    grads = random_tree(1, 10.0)
    clipped, _ = optim.clip_each(3.0).update(grads, optax.EmptyState())
    for part in clipped.values():
        np.testing.assert_allclose(optax.tree.norm(part), 3.0, rtol=1e-5)
    same, _ = optim.clip_each(0.0).update(grads, optax.EmptyState())
    assert same is grads


@pytest.mark.parametrize(
    ("rule", "want"), [("sqrt", 2.0), ("linear", 4.0), ("none", 1.0)]
)
def test_learning_rate_scales_by_rule(rule, want):
    assert schedules.scaled_lr(1.0, 4096, rule) == want
    with pytest.raises(ValueError, match="unknown"):
        schedules.scaled_lr(1.0, 4096, "cube")


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        schedules.cosine(1.0, 0.0, 10, 11)


def test_schedules_hold_their_ends():
    at = schedules.cosine(2.0, 0.5, 20, 4, start=1.0)
    values = [float(at(t)) for t in range(25)]
    assert values[0] == 1.0 and values[3] == values[4] == 2.0
    assert values[20:] == [0.5] * 5
    assert values[4:] == sorted(values[4:], reverse=True)
