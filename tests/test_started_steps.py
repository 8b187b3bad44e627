"""Real steps of runs that start from weights of every kind, on one device and eight."""

import jax
import numpy as np
import pytest
import test_starting as starts
import tiny

from dinov2_jax import checkpoint, sharding
from dinov2_jax.cli import starting
from dinov2_jax.convert import export, names


def workdir(folder, config, params):
    """A run with a checkpoint of such a teacher."""
    state, _ = tiny.prepared(config, sharding.make_mesh(1, jax.devices()[:1]))
    state = state.replace(teacher=jax.tree.map(jax.numpy.asarray, params))
    checkpoints = checkpoint.manager(folder / "run" / "checkpoints")
    checkpoint.save(checkpoints, 3, state, {})
    checkpoints.close()
    return folder / "run"


def official(params) -> dict:
    """The backbone by the official names."""
    return names.backbone_to_official(params["backbone"], 4)


def about(config) -> dict:
    """What a writer is told of the backbone."""
    return export.about(starts.model(config).backbone)


def safetensors(folder, config, params):
    path = folder / "a.safetensors"
    export.write_safetensors(path, official(params), about(config))
    return path


def pth(folder, config, params):
    return starts.arrays.write_torch(folder / "a.pth", official(params))


def hugging_face(folder, config, params):
    export.write_huggingface(folder / "hub", official(params), about(config))
    return folder / "hub"


def timm(folder, config, params):
    path = folder / "timm.safetensors"
    export.write_timm(path, official(params), about(config))
    return path


def teacher_checkpoint(folder, config, params):
    return starts.teacher_file(folder / "teacher_checkpoint.pth", params)


KINDS = [workdir, safetensors, pth, hugging_face, timm, teacher_checkpoint]


@pytest.fixture(scope="module", params=[(1, 1), (8, 1), (8, 4)], ids=str)
def prepared(request):
    """(config, layout, a fresh state's maker, the jitted step) on so many devices."""
    devices, fsdp = request.param
    config = tiny.config(loss__targets="sinkhorn")
    mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
    state, update = tiny.prepared(config, mesh)
    layout = jax.tree.map(lambda x: x.sharding, state)
    host = jax.device_get(state)
    batches = [sharding.put(tiny.batch(config, i), mesh) for i in range(3)]
    return config, layout, host, update, batches


def places(state) -> list[int]:
    """Addresses of all parts of all arrays of a state."""
    return [
        shard.data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_takes_steps_from_weights_of_every_kind(prepared, kind, tmp_path):
    config, layout, host, update, batches = prepared
    given = starts.drawn(config, 3)
    config.init.weights = str(kind(tmp_path, config, given))
    state = jax.jit(lambda x: x, out_shardings=layout)(host)
    backbone = starts.model(config).backbone
    state = starting.with_weights(state, layout, config, backbone)
    both = [state.params["backbone"], state.teacher["backbone"]]
    for part in both:
        np.testing.assert_array_equal(
            part["norm"]["scale"], given["backbone"]["norm"]["scale"]
        )
    addresses = places(both)
    assert len(set(addresses)) == len(addresses)
    for batch in batches:
        state, terms = update(state, batch)
        assert np.isfinite(terms["loss/total"])
    assert int(state.step) == len(batches)
    student, teacher = (
        np.asarray(part["backbone"]["cls_token"])
        for part in (state.params, state.teacher)
    )
    assert (student != teacher).any()
