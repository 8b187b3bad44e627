"""Backbone and heads: exact sizes, packing, stochastic depth, dtypes."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import tree
from dinov2_jax.convert import names
from dinov2_jax.models import heads, layers, posembed, vit

OFFICIAL = json.loads(
    (pathlib.Path(__file__).parent / "parity/golden/export_names.json").read_text()
)
SMALL = {"width": 24, "depth": 3, "heads": 3, "patch_size": 4, "image_size": 16}


def shapes_of(model: vit.ViT, size: int):
    """Shapes of the parameters, nothing computed."""
    x = jnp.zeros((1, size, size, model.in_channels))
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


@pytest.mark.parametrize("name", [n for n in OFFICIAL if n.startswith("vit")])
def test_official_backbones_have_the_exact_parameters(name):
    entry = OFFICIAL[name]
    letter = {"vit_small": "S", "vit_base": "B", "vit_large": "L", "vit_giant2": "g"}
    model = vit.build(
        f"{letter[entry['arch']]}/{entry['patch_size']}",
        image_size=entry["img_size"],
        registers=entry["num_register_tokens"],
    )
    shapes = shapes_of(model, 28)
    assert tree.count(shapes) == entry["total_params"]


@pytest.mark.parametrize("name", ["vits14", "vits14_reg4"])
def test_official_names_and_shapes_go_in_and_out(name):
    entry = OFFICIAL[name]
    registers, size = entry["num_register_tokens"], entry["img_size"]
    shapes = shapes_of(vit.build("S/14", image_size=size, registers=registers), 28)
    state = {
        k: np.broadcast_to(np.float32(0), s) for k, s in entry["state_dict"].items()
    }
    back = names.backbone_from_official(state, shapes)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, shapes)
    official = names.backbone_to_official(back, entry["patch_size"])
    assert {k: list(v.shape) for k, v in official.items()} == entry["state_dict"]


@pytest.mark.parametrize("hidden", sorted(OFFICIAL["swiglu_hidden_sizes"]))
def test_swiglu_rounds_its_width_as_the_reference(hidden):
    expected = OFFICIAL["swiglu_hidden_sizes"][hidden]
    assert layers.swiglu_hidden(4 * int(hidden)) == expected


def test_official_names_go_out_and_come_back_unchanged():
    model = vit.ViT(**SMALL, registers=2, in_channels=5)
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 5)))["params"]
    official = names.backbone_to_official(params, model.patch_size)
    assert official["patch_embed.proj.weight"].shape == (24, 5, 4, 4)
    back = names.backbone_from_official(official, params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, back))


def test_weights_of_another_architecture_are_listed():
    params = shapes_of(vit.ViT(**SMALL), 16)
    other = vit.ViT(**SMALL, registers=1, ffn="swiglu")
    given = other.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    with pytest.raises(ValueError, match="missing blocks.0.mlp.fc1.*unexpected"):
        names.backbone_from_official(names.backbone_to_official(given, 4), params)


def test_rectangles_and_other_sizes_pass_through():
    model = vit.ViT(**SMALL, registers=3, layerscale=None, qkv_bias=False)
    params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    out = model.apply(params, jnp.zeros((2, 8, 24, 3)))
    assert out.patches.shape == (2, 12, 24) and out.registers.shape == (2, 3, 24)
    assert "ls1" not in params["params"]["blocks"]
    assert "bias" not in params["params"]["blocks"]["attn"]["qkv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 25}, "width=25 is not a multiple of heads=3"),
        ({"ffn": "moe"}, "ffn='moe' is unknown"),
        ({"remat": "some"}, "remat='some' is unknown"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        vit.ViT(**(SMALL | arguments))


def test_images_that_are_no_multiple_of_the_patch_are_refused():
    model = vit.ViT(**SMALL)
    with pytest.raises(
        ValueError,
        match="10x16 pixels .H x W of shape .1, 10, 16, 3.. are not a multiple",
    ):
        model.init(jax.random.key(0), jnp.zeros((1, 10, 16, 3)))


@pytest.mark.parametrize("name", ["S", "X/14", "S/x", "S/0"])
def test_unknown_variants_are_refused(name):
    with pytest.raises(ValueError, match="SIZE/PATCH"):
        vit.variant(name)


def test_missing_blocks_are_refused():
    model = vit.ViT(**SMALL)
    x = jnp.zeros((1, 16, 16, 3))
    params = model.init(jax.random.key(0), x)
    for blocks in ([3], 4, []):
        with pytest.raises(ValueError, match="the model has 3 blocks, 0 to 2"):
            model.apply(params, x, blocks, method="intermediate")


@pytest.mark.parametrize("uniform", [True, False])
def test_stochastic_depth_keeps_the_expected_rows_inside_each_group(uniform):
    rows, rate = 10, 0.3
    block = layers.Block(((rows, 2),), 1, 4, drop=rate, uniform_drop=uniform)
    kept, weights = block.draw(jax.random.key(0), 4, rows, jnp.float32(rate))
    size = layers.subset_size(rows, rate)
    assert size == 7
    real = np.asarray(weights) > 0
    assert (real.sum(1) == size).all()
    np.testing.assert_allclose(np.asarray(weights)[real], rows / size, rtol=1e-6)
    for row, number in zip(np.asarray(kept), real.sum(1)):
        assert len(set(row[:number].tolist())) == number


def test_stochastic_depth_leaves_the_other_rows_unchanged():
    x = jax.random.normal(jax.random.key(0), (2, 6 * 3, 4))
    kept = [jnp.array([[1, 4], [0, 5]])]
    out = layers.subset_residual(
        x, ((6, 3),), kept, [jnp.ones((2, 2))], lambda y, _: jnp.ones_like(y)
    )
    changed = np.asarray((out - x).reshape(2, 6, 3, 4))
    expected = np.zeros((2, 6))
    expected[0, [1, 4]] = expected[1, [0, 5]] = 1
    np.testing.assert_allclose(changed.mean((2, 3)), expected, atol=1e-6)


def test_training_draws_depth_and_evaluation_does_not():
    model = vit.ViT(**SMALL, drop_path=0.5, layerscale=1.0)
    x = jax.random.normal(jax.random.key(1), (4, 2, 16, 16, 3))
    params = model.init(jax.random.key(0), x[:, 0])

    def run(key, train):
        rngs = {"drop_path": jax.random.key(key)}
        found = model.apply(params, [x], None, 2, train, rngs=rngs, method="views")[0]
        return np.asarray(found[0].cls)

    assert (run(0, True) == run(0, True)).all()
    assert not np.allclose(run(0, True), run(1, True))
    assert (run(0, False) == run(1, False)).all()


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_and_unroll_change_no_gradient(remat):
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    plain = vit.ViT(**SMALL)
    params = plain.init(jax.random.key(0), x)

    def gradient(model):
        return jax.jit(
            jax.grad(lambda p: jnp.square(model.apply(p, x).patches).mean())
        )(params)

    want, got = gradient(plain), gradient(vit.ViT(**SMALL, remat=remat, unroll=3))
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got)):
        # the same float32 sums in another order
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_computes_near_float32_with_float32_parameters():
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    model = vit.ViT(**SMALL)
    params = model.init(jax.random.key(0), x)
    half = vit.ViT(**SMALL, dtype=jnp.bfloat16)
    out = half.apply(params, x)
    assert out.cls.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype("float32")}
    # 8 bits of mantissa over three blocks
    np.testing.assert_allclose(
        out.cls.astype(np.float32), model.apply(params, x).cls, atol=0.1
    )


def test_initial_weights_follow_the_reference():
    model = vit.ViT(
        width=96, depth=2, heads=3, patch_size=8, image_size=64, registers=2
    )
    params = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    kernel = params["blocks"]["attn"]["qkv"]["kernel"]
    assert abs(float(kernel.std()) - 0.02) < 1e-3
    assert abs(float(params["pos_embed"].std()) - 0.02) < 1e-3
    assert float(jnp.abs(params["register_tokens"]).max()) < 1e-5
    bound = (3 * 8 * 8) ** -0.5
    patch = np.asarray(params["patch_embed"]["kernel"])
    assert np.abs(patch).max() <= bound and patch.std() > 0.5 * bound
    assert (params["blocks"]["ls1"]["gamma"] == jnp.float32(1e-5)).all()


def test_resizing_to_the_same_grid_is_the_identity_and_bad_tables_are_refused():
    table = jax.random.normal(jax.random.key(0), (1, 17, 3))
    assert (posembed.resize(table, (4, 4), False, 0.1) == table).all()
    with pytest.raises(ValueError, match="square grid"):
        posembed.resize(table[:, 1:], (2, 2), False, 0.1)


@pytest.mark.parametrize("antialias", [True, False])
def test_resize_weights_sum_to_one(antialias):
    for n_in, n_out in ((37, 16), (5, 7), (16, 16)):
        weights = posembed.resize_weights(n_in, n_out, antialias, 0.1)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)


def test_head_normalises_and_has_a_gradient_at_zero():
    head = heads.Head(prototypes=7, hidden=5, bottleneck=4)
    params = head.init(jax.random.key(0), jnp.ones((1, 3)))
    out = head.apply(params, jax.random.normal(jax.random.key(1), (9, 3)))
    assert float(jnp.abs(out).max()) <= 1 + 1e-6  # a cosine, as g starts at 1
    grad = jax.grad(lambda x: heads.normalize(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(grad).all()
    with pytest.raises(ValueError, match="1 or more"):
        heads.Head(prototypes=7, layers=0).init(jax.random.key(0), jnp.ones((1, 3)))
