"""ONNX programs that take images of any size resize positions as the model does."""

import itertools

import numpy as np
import peers
import pytest

from dinov2_jax.convert import check, export, onnx
from dinov2_jax.models import posembed

pytestmark = pytest.mark.torch

# Of features near 1. Weights of the resize differ by float32's rounding, seen 2e-6.
WIDEST = 3e-5


def session(path):
    """The program in onnxruntime, without its warnings."""
    runtime = peers.package("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    return runtime.InferenceSession(path, options)


@pytest.mark.parametrize(
    "resize",
    [
        {"antialias": False, "offset": 0.1},
        {"antialias": True, "offset": 0.0},
        {"antialias": False, "offset": 0.0},
        {"antialias": True, "offset": 0.1},
    ],
)
def test_one_program_gives_our_features_at_every_size(resize, tmp_path):
    peers.package("onnxruntime", "onnx")
    model = peers.model(4, depth=1, image_size=(70, 84), **resize)
    params, path = peers.params(model), tmp_path / "model.onnx"
    onnx.write(path, peers.official(model), model, export.about(model), None)
    sizes = [(70, 84), (70, 98), (42, 28), (140, 154)]
    stacks = check.images(sizes, 3)
    found, _ = check.features("onnx", path, model, params, {}, stacks)
    assert [one.size for one in found] == sizes
    for one in found:
        assert max(one.cls, one.patches) < WIDEST, one
    assert onnx.about(path)["image_size"] == [70, 84]


def test_the_resize_in_the_graph_is_that_of_the_model(tmp_path):
    package = peers.package("onnx")
    rng = np.random.default_rng(0)
    for antialias, offset in itertools.product((False, True), (0.0, 0.1)):
        how = {"antialias": antialias, "offset": offset}
        table = rng.normal(size=(1, 1 + 7 * 16, 3)).astype(np.float32)
        graph = onnx.Graph(package)
        resize = onnx.onnx_positions.Resize(graph, table, (7, 16), how)
        result = resize.patches("rows", "columns")
        helper, kind = package.helper, package.TensorProto
        proto = helper.make_model(
            helper.make_graph(
                graph.nodes,
                "resize",
                [
                    helper.make_tensor_value_info(n, kind.INT64, [1])
                    for n in ("rows", "columns")
                ],
                [helper.make_tensor_value_info(result, kind.FLOAT, [1, None, 3])],
                [
                    package.numpy_helper.from_array(v, k)
                    for k, v in graph.constants.items()
                ],
            ),
            opset_imports=[helper.make_opsetid("", onnx.OPSET)],
            ir_version=9,
        )
        path = tmp_path / "resize.onnx"
        package.save_model(proto, path)
        program = session(path)
        for grid in [(7, 16), (7, 17), (1, 1), (16, 7), (37, 40), (3, 16), (101, 2)]:
            given = {k: np.array([n]) for k, n in zip(("rows", "columns"), grid)}
            (found,) = program.run(None, given)
            expected = posembed.resize(table, grid, source=(7, 16), **how)[:, 1:]
            # Samples lie up to 1e-6 elsewhere, where the kernel's slope is 1 or so.
            np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{grid}")
        (found,) = program.run(None, {"rows": np.array([7]), "columns": np.array([16])})
        np.testing.assert_array_equal(found, table[:, 1:])


def test_images_that_are_not_of_whole_patches_fail(tmp_path):
    peers.package("onnxruntime", "onnx")
    model, path = peers.model(depth=1), tmp_path / "model.onnx"
    onnx.write(path, peers.official(model), model, {}, None)
    program = session(path)
    for size in ((71, 70), (70, 69)):
        images = np.zeros((1, 3, *size), np.float32)
        with pytest.raises(Exception, match="Reshape|reshape"):
            program.run(None, {"images": images})
