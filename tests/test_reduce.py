"""The dtypes in which compiled programs sum gradients over devices."""

import re

import pytest
import tiny

from dinov2_jax import sharding

SIZES = {
    "head__separate": "true",
    "head__hidden": "24",
    "head__bottleneck": "12",
    "head__prototypes": "40",
    "patch_head__hidden": "20",
    "patch_head__bottleneck": "28",
    "patch_head__prototypes": "56",
}
HEADS = {24, 12, 40, 20, 28, 56}
"""Sizes of the heads' layers, whole; no other array of the model has them."""


def summed(fsdp: int, **overrides: str) -> set[tuple[bool, str]]:
    """(whether a head's, dtype) of the gradients that bfloat16 training sums.

    CPUs sum no bfloat16: where a program asks for it, the compiler promotes the sum
    and says so in its name. Sums are not combined, so that each has its own name.
    """
    config = tiny.config(train__dtype="bfloat16", **SIZES, **overrides)
    mesh = sharding.make_mesh(fsdp)
    state, update = tiny.prepared(config, mesh)
    lowered = update.lower(state, sharding.put(tiny.batch(config, 0), mesh))
    options = {"xla_disable_hlo_passes": "all-reduce-combiner"}
    text = lowered.compile(compiler_options=options).as_text()
    dtypes = set()
    for line in text.splitlines():
        one = re.search(r"= f32\[([\d,]+)\]\S* all-reduce\(.*to_apply=(\S+?),", line)
        # A gradient is the transpose of a step's forward pass.
        if one and "transpose(jvp" in line:
            sizes = set(map(int, one[1].split(",")))
            dtype = "bfloat16" if one[2].endswith("_promoted") else "float32"
            dtypes.add((bool(sizes & HEADS), dtype))
    return dtypes


@pytest.mark.parametrize("fsdp", [1, 4])
def test_gradients_of_heads_are_summed_in_float32_by_default(fsdp):
    found = summed(fsdp)
    assert (True, "float32") in found and (True, "bfloat16") not in found
    assert (False, "bfloat16") in found  # the backbone's, as in the reference


def test_gradients_of_heads_are_summed_in_the_dtype_of_choice():
    assert (True, "bfloat16") in summed(1, mesh__reduce_heads="")
