"""The same numbers on one device and on eight, whole or sharded."""

import jax
import numpy as np
import pytest
import tiny

from dinov2_jax import neighbors, sharding

CASES = [
    pytest.param(
        2,
        {
            "loss__targets": "sinkhorn",
            "head__separate": "true",
            "model__drop_path": "0.5",
        },
        id="sharded",
    ),
    pytest.param(
        1,
        {"train__batch_size": "32", "train__accumulate": "2", "mesh__remat": "full"},
        id="accumulated",
    ),
    pytest.param(4, {"mesh__remat": "dots"}, id="sharded-dots", marks=pytest.mark.slow),
    pytest.param(
        8, {"model__uniform_drop": "false"}, id="ring", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("fsdp", "overrides"), CASES)
def test_eight_devices_give_the_losses_of_one(fsdp, overrides):
    config = tiny.config(**overrides)
    _, want = tiny.train(config, sharding.make_mesh(1, jax.devices()[:1]), 3)
    state, got = tiny.train(config, sharding.make_mesh(fsdp), 3)
    for step, (a, b) in enumerate(zip(want, got)):
        # sums over devices in another order; AdamW amplifies tiny gradients later
        tolerance = 1e-5 if step == 0 else 2e-3
        for name in a:
            np.testing.assert_allclose(
                b[name],
                a[name],
                rtol=tolerance,
                atol=tolerance,
                err_msg=f"{step} {name}",
            )
    kernel = state.params["backbone"]["blocks"]["attn"]["qkv"]["kernel"]
    moment = state.opt_state[1].mu["backbone"]["blocks"]["attn"]["qkv"]["kernel"]
    for leaf in (kernel, moment):
        shard = leaf.addressable_shards[0].data.shape
        assert shard == (2, 32 // fsdp, 96)


def test_groups_stay_inside_devices_so_no_image_moves():
    config = tiny.config(model__drop_path="0.5", loss__targets="centering")
    mesh = sharding.make_mesh(1)
    placed = sharding.put(tiny.batch(config, 0), mesh)
    assert placed.global_crops.addressable_shards[0].data.shape[0] == 2
    assert placed.mask_indices.addressable_shards[0].data.shape[0] == 1


def test_batches_with_other_masks_compile_nothing_again():
    config = tiny.config(loss__targets="sinkhorn", model__drop_path="0.5")
    mesh = sharding.make_mesh(4)
    state, update = tiny.prepared(config, mesh)
    masked = set()
    for number in range(20):
        batch = tiny.batch(config, number)
        masked.add(int(batch.masks.sum()))
        state, _ = update(state, sharding.put(batch, mesh))
    assert len(masked) > 5 and update._cache_size() == 1


def test_gradients_are_summed_in_the_dtype_of_choice():
    texts = []
    for reduce in ("", "float32"):
        config = tiny.config(train__dtype="bfloat16", mesh__reduce=reduce)
        mesh = sharding.make_mesh(4)
        state, update = tiny.prepared(config, mesh)
        placed = sharding.put(tiny.batch(config, 0), mesh)
        texts.append(update.lower(state, placed).as_text())
        state, terms = update(state, placed)
        assert np.isfinite(terms["loss/total"])
    # a block's weight gradient, [width, hidden]: bfloat16 products, or float32 ones
    narrow, wide = (text.count("-> tensor<32x128xf32>") for text in texts)
    assert wide > narrow


def test_weights_are_cut_into_tiles_along_whichever_axis_divides():
    mesh = sharding.make_mesh(8)
    shapes = {
        "blocks/a/kernel": jax.ShapeDtypeStruct((3, 2736, 1024), "f4"),  # 171 tiles
        "blocks/b/kernel": jax.ShapeDtypeStruct((3, 1024, 2736), "f4"),
        "blocks/c/kernel": jax.ShapeDtypeStruct((3, 8, 24), "f4"),  # no whole tile
        "blocks/d/kernel": jax.ShapeDtypeStruct((3, 9, 9), "f4"),
        "x_head/last_layer/v": jax.ShapeDtypeStruct((256, 4096), "f4"),
        "x_head/last_layer/g": jax.ShapeDtypeStruct((4096,), "f4"),
        "pos_embed": jax.ShapeDtypeStruct((1, 8, 1024), "f4"),
    }
    found = {k: tuple(x.spec) for k, x in sharding.layouts(shapes, mesh).items()}
    assert found == {
        "blocks/a/kernel": (None, None, "fsdp"),
        "blocks/b/kernel": (None, "fsdp"),
        "blocks/c/kernel": (None, "fsdp"),
        "blocks/d/kernel": (),
        "x_head/last_layer/v": (None, "fsdp"),
        "x_head/last_layer/g": ("fsdp",),
        "pos_embed": (),
    }


class Chip:
    """A device of a slice or a host, as far as a mesh asks."""

    def __init__(self, platform, coords=None, host=0):
        self.platform, self.process_index = platform, host
        if coords:
            self.coords = coords


@pytest.mark.parametrize(
    ("sides", "ring"),
    [((2, 2), 4), ((2, 4), 4), ((8, 8), 8), ((16, 16), 16), ((4, 4, 4), 16)],
)
def test_a_ring_lies_along_whole_axes_of_a_slice(sides, ring):
    chips = [Chip("tpu", at) for at in np.ndindex(*sides)]
    large = {"blocks/kernel": jax.ShapeDtypeStruct((40, 1536, 8192), "f4")}
    assert sharding.ring(large, chips) == ring
    small = {"blocks/kernel": jax.ShapeDtypeStruct((12, 384, 1152), "f4")}
    assert sharding.ring(small, chips) == 1


def test_a_ring_of_gpus_stays_in_a_host():
    large = {"blocks/kernel": jax.ShapeDtypeStruct((40, 1536, 8192), "f4")}
    gpus = [Chip("gpu", host=i // 4) for i in range(16)]
    assert sharding.ring(large, gpus) == 4


def test_a_mesh_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="mesh.fsdp=3 does not divide 8 devices"):
        sharding.make_mesh(3)


@pytest.mark.parametrize(("shards", "block"), [(1, 4096), (8, 7), (3, 10)])
def test_neighbors_do_not_depend_on_blocks_or_shards(shards, block):
    rng = np.random.default_rng(0)
    queries, keys = (rng.normal(size=(n, 6)).astype(np.float32) for n in (9, 101))
    dots, ids = neighbors.topk(queries, keys, 5, block, shards)
    want = np.argsort(-(queries @ keys.T), axis=1)[:, :5]
    assert (np.asarray(ids) == want).all()
    np.testing.assert_allclose(
        dots, np.take_along_axis(queries @ keys.T, want, 1), rtol=1e-5
    )
