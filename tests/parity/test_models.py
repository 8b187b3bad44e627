"""Backbone, position embeddings and head against the reference's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.convert import names
from dinov2_jax.models import heads, layers, posembed, vit

TOLERANCE = 2e-5  # ten times the float32 noise floor of the reference's forward pass


@functools.cache
def model_of(items: tuple) -> vit.ViT:
    """The ViT that a golden file's meta describes."""
    meta = dict(items)
    return vit.ViT(
        width=meta["embed_dim"],
        depth=meta["depth"],
        heads=meta["num_heads"],
        patch_size=meta["patch_size"],
        image_size=meta["img_size"],
        registers=meta["num_register_tokens"],
        ffn="mlp" if meta["ffn_layer"] == "mlp" else "swiglu",
        mlp_ratio=meta["mlp_ratio"],
        layerscale=meta["init_values"],
        qkv_bias=meta["qkv_bias"],
        proj_bias=meta["proj_bias"],
        ffn_bias=meta["ffn_bias"],
        antialias=meta["interpolate_antialias"],
        offset=meta["interpolate_offset"],
    )


@pytest.fixture(scope="module")
def loaded(arrays):
    """loaded(stem) -> (golden arrays, model, params)."""

    @functools.cache
    def load(stem):
        data = arrays(stem)
        scalars = {k: v for k, v in data.meta.items() if not isinstance(v, list | dict)}
        model = model_of(tuple(scalars.items()))
        template = jax.eval_shape(
            model.init, jax.random.key(0), images(data["in/base"])
        )
        params = names.backbone_from_official(data.under("weights"), template["params"])
        return data, model, {"params": params}

    return load


def images(nchw: np.ndarray) -> jax.Array:
    """Golden NCHW images as NHWC."""
    return jnp.asarray(nchw.transpose(0, 2, 3, 1))


def close(got, want, tolerance=TOLERANCE):
    """Equal within an absolute tolerance."""
    np.testing.assert_allclose(np.asarray(got), want, atol=tolerance, rtol=0)


def test_forward_passes_equal_the_reference(loaded, vit_file):
    data, model, params = loaded(vit_file)
    for name in data.meta["sizes_hw"]:
        out = model.apply(params, images(data[f"in/{name}"]))
        close(out.cls, data[f"out/{name}/x_norm_clstoken"])
        close(out.cls, data[f"out/{name}/forward"])
        close(out.registers, data[f"out/{name}/x_norm_regtokens"])
        close(out.patches, data[f"out/{name}/x_norm_patchtokens"])
        close(out.prenorm, data[f"out/{name}/x_prenorm"])


def test_masked_forward_equals_the_reference(loaded, vit_file):
    data, model, params = loaded(vit_file)
    masks = jnp.asarray(data["in/base_masks"])
    out = model.apply(params, images(data["in/base"]), masks)
    close(out.cls, data["out/base_masked/x_norm_clstoken"])
    close(out.registers, data["out/base_masked/x_norm_regtokens"])
    close(out.patches, data["out/base_masked/x_norm_patchtokens"])
    close(out.prenorm, data["out/base_masked/x_prenorm"])


def test_packed_views_equal_separate_passes(loaded, vit_file):
    data, model, params = loaded(vit_file)
    stacks = [images(data[f"in/{name}"])[:, None] for name in data.meta["sizes_hw"]]
    found, _ = model.apply(params, stacks, method="views")
    for name, out in zip(data.meta["sizes_hw"], found):
        close(out.prenorm[:, 0], data[f"out/{name}/x_prenorm"])


def test_intermediate_layers_equal_the_reference(loaded, vit_file):
    data, model, params = loaded(vit_file)
    x = images(data["in/rect"])
    grid = [side // data.meta["patch_size"] for side in data.meta["sizes_hw"]["rect"]]
    for case in sorted({key.split("/")[1] for key in data if key.startswith("gil/")}):
        chosen, mapped, normed = case.split("_reshape")[0], "reshape1" in case, case[-1]
        numbers = [int(n) for n in chosen[1:].split("_")]
        blocks = numbers if len(numbers) > 1 else numbers[0]
        found = model.apply(params, x, blocks, normed == "1", method="intermediate")
        assert len(found) == len(data.under(f"gil/{case}")) // 2
        for i, out in enumerate(found):
            want = data[f"gil/{case}/{i}/patch"]
            patches = out.patches
            if mapped:
                patches = vit.as_map(patches, grid).transpose(0, 3, 1, 2)
            close(patches, want)
            close(out.cls, data[f"gil/{case}/{i}/cls"])


def test_every_block_of_the_trace_equals_the_reference(loaded, vit_file):
    data, model, params = loaded(vit_file)
    stack = [images(data["in/base"])[:, None]]
    depth = data.meta["depth"]
    _, taps = model.apply(params, stack, tap=range(depth), method="views")
    for i in range(depth - 1):
        close(taps[i][0].prenorm[:, 0], data[f"trace/base/after_block{i}"])


def test_small_tokens_show_the_layer_norm_epsilon(loaded, vit_file):
    data, model, params = loaded(vit_file)
    x = jnp.asarray(data["probe/in"])
    variables = params["params"]
    norm = vit.nn.LayerNorm(1e-6, use_fast_variance=False)
    close(norm.apply({"params": variables["norm"]}, x), data["probe/norm_out"])
    block = layers.Block(
        layout=((1, x.shape[1]),),
        heads=model.heads,
        hidden=int(model.width * model.mlp_ratio),
        ffn=model.ffn,
        layerscale=model.layerscale,
    )
    first = jax.tree.map(lambda a: a[0], variables["blocks"])
    carry = (x, jnp.zeros((0, *x.shape)))
    (out, _), _ = block.apply({"params": first}, carry, (jnp.int32(0), jnp.float32(0)))
    close(out, data["probe/block0_out"])


def test_position_embeddings_of_the_models_equal_the_reference(loaded, vit_file):
    data, model, params = loaded(vit_file)
    for name, size in data.meta["sizes_hw"].items():
        grid = tuple(side // model.patch_size for side in size)
        table = jnp.asarray(params["params"]["pos_embed"])
        got = posembed.resize(table, grid, model.antialias, model.offset)
        close(got, data[f"pos_embed_interp/{name}"], 5e-5)


def test_position_interpolation_equals_the_reference_in_all_cases(arrays):
    data = arrays("pos_embed_interp")
    for case in data.meta["cases"]:
        table = jnp.asarray(data[case["src"]])
        grid = (case["h"], case["w"])
        got = posembed.resize(table, grid, case["antialias"], case["offset"])
        close(got, data[case["key"]], 5e-5)  # float32 sample positions in the reference


def test_head_and_its_gradients_equal_the_reference(arrays):
    data = arrays("dino_head")
    for case in data.meta["cases"]:
        tag = case["tag"]
        params = names.head_from_official(data.under(f"{tag}/weights"))
        head = heads.Head(
            prototypes=data.meta["out"],
            hidden=data.meta["hidden"],
            bottleneck=data.meta["bott"],
            layers=case["nlayers"],
        )

        def run(params, x, head=head):
            return head.apply({"params": params}, x)

        out, pull = jax.vjp(run, params, jnp.asarray(data[f"{tag}/in"]))
        grads, grad_in = pull(jnp.asarray(data[f"{tag}/cotangent"]))
        close(out, data[f"{tag}/out"], 3e-6)
        close(grad_in, data[f"{tag}/grad_in"], 1e-5)
        for name, value in names.head_to_official(grads).items():
            close(value, data[f"{tag}/grads/{name}"], 1e-5)
