"""The dtypes in which programs sum the gradients of heads over devices."""

import re

import jax
import pytest
import tiny

from dinov2_jax import sharding
from dinov2_jax.cli import assemble, restoring

SIZES = {
    "head__separate": "true",
    "head__hidden": "24",
    "head__bottleneck": "12",
    "head__prototypes": "40",
    "patch_head__hidden": "20",
    "patch_head__bottleneck": "28",
    "patch_head__prototypes": "56",
}
WEIGHTS = {(32, 24), (24, 24), (24, 12), (12, 40)}
WEIGHTS |= {(32, 20), (20, 20), (20, 28), (28, 56)}
BIASES = {(24,), (12,), (20,), (28,)}
"""Shapes of the heads' kernels and biases; no other array of the model has them."""

SUMS = re.compile(
    r"stablehlo\.(dot_general|reduce\b).* -> tensor<((?:\d+x)+)(bf16|f32)>"
)


def summed(fsdp: int, **overrides: str) -> dict[tuple[int, ...], set[str]]:
    """Shape of a head's weights -> dtypes of the sums over images of that shape.

    Images lie on all devices, so that a sum over them is also one over devices, in
    the dtype that the program states before the compiler parts it.
    """
    config = tiny.config(train__dtype="bfloat16", **SIZES, **overrides)
    mesh = sharding.make_mesh(fsdp)
    model = assemble.model(config, mesh)
    recipe = assemble.recipe(config, model, assemble.shapes(config, model))
    state = restoring.targets(config, model, recipe, mesh)
    batch = sharding.put(tiny.batch(config, 0), mesh)
    text = assemble.update(recipe, state, mesh).lower(state, batch).as_text()
    dtypes: dict[tuple[int, ...], set[str]] = {}
    for _, sizes, dtype in SUMS.findall(text):
        shape = tuple(map(int, sizes.split("x")[:-1]))
        # The gradient of a product with a narrow kernel is that of its transpose.
        shape = shape[::-1] if shape[::-1] in WEIGHTS else shape
        if shape in WEIGHTS | BIASES:
            dtypes.setdefault(shape, set()).add(dtype)
    return dtypes


@pytest.mark.parametrize("fsdp", [1, 4])
def test_gradients_of_heads_are_summed_in_float32_by_default(fsdp):
    dtypes = summed(fsdp)
    assert set(dtypes) == WEIGHTS | BIASES
    assert all(kinds == {"f32"} for kinds in dtypes.values()), dtypes


def test_gradients_of_heads_are_summed_in_the_dtype_of_choice():
    dtypes = summed(1, mesh__reduce_heads="")
    assert all("bf16" in dtypes[shape] for shape in WEIGHTS), dtypes


def test_the_losses_state_the_precision_of_their_products():
    config = tiny.config(train__dtype="bfloat16")
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    model = assemble.model(config, mesh)
    recipe = assemble.recipe(config, model, assemble.shapes(config, model))
    state = restoring.targets(config, model, recipe, mesh)
    batch = sharding.put(tiny.batch(config, 0), mesh)
    with jax.default_matmul_precision("default"):
        update = assemble.update(recipe, state, mesh)
        text = update.lower(state, batch).as_text()
    products = [
        line
        for line in text.splitlines()
        if re.search(r"dot_general.*: \(tensor<[\dx]+xf32>, tensor<[\dx]+xf32>\)", line)
    ]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), products
