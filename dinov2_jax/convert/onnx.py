"""A backbone as an ONNX graph, built node by node from the official tensors.

Differs: `jax2onnx` (0.17.1) fails to trace the scan over blocks, and its requirements
exclude the Orbax that training needs; the way through PyTorch has no registers in the
reference's own package. The graph is thirty operators a block and plain, so it is
written out here, and its output is compared with ours in onnxruntime.
"""

import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import onnx_positions
from dinov2_jax.models import posembed, vit

OPSET = 20  # the first with Gelu
END = np.iinfo(np.int64).max  # of an axis, in a Slice
LIMIT = 1 << 30  # bytes in one file; protobuf itself ends at 2 GB


def _onnx():
    """The onnx package.

    Raises: ValueError that names the extra.
    """
    try:
        import onnx
    except ImportError as error:
        raise errors.InputError(
            "ONNX files are made with the onnx package, which is not installed; "
            "pip install 'dinov2_jax[onnx]'."
        ) from error
    return onnx


class Graph:
    """Nodes and constants of a graph that grows; a node's name is its output's."""

    def __init__(self, onnx) -> None:
        self.onnx = onnx
        self.nodes = []
        self.constants = {}

    def add(
        self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attributes
    ):
        """Append a node; returns the name of its output, or their names."""
        stem = name or f"{kind}_{len(self.nodes)}"
        names = [stem] if outputs == 1 else [f"{stem}.{i}" for i in range(outputs)]
        node = self.onnx.helper.make_node(kind, inputs, names, stem, **attributes)
        self.nodes.append(node)
        return stem if outputs == 1 else names

    def weight(self, name: str, value: np.ndarray) -> str:
        """A float32 constant; returns its name."""
        self.constants[name] = np.ascontiguousarray(value, np.float32)
        return name

    def numbers(self, *values: int) -> str:
        """A constant list of whole numbers; returns its name."""
        name = "ints_" + "_".join(map(str, values))
        self.constants[name] = np.array(values, np.int64)
        return name

    def scalar(self, value: int) -> str:
        """A constant whole number; returns its name."""
        self.constants[f"int_{value}"] = np.array(value, np.int64)
        return f"int_{value}"

    def dense(self, x: str, tensors: Mapping[str, np.ndarray], name: str) -> str:
        """A linear layer over the last axis, with its bias if it has one."""
        weight = f"{name}.weight"
        x = self.add("MatMul", x, self.weight(weight, stored(weight, tensors[weight])))
        bias = f"{name}.bias"
        return (
            self.add("Add", x, self.weight(bias, tensors[bias]))
            if bias in tensors
            else x
        )

    def norm(self, x: str, tensors: Mapping[str, np.ndarray], name: str) -> str:
        """A LayerNorm over the last axis."""
        scale, bias = (
            self.weight(f"{name}.{k}", tensors[f"{name}.{k}"])
            for k in ("weight", "bias")
        )
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)

    def scaled(self, x: str, tensors: Mapping[str, np.ndarray], name: str) -> str:
        """LayerScale, where the block has it."""
        if name not in tensors:
            return x
        return self.add("Mul", x, self.weight(name, tensors[name]))


def _positions(
    graph: Graph, table: np.ndarray, model: vit.ViT, size: tuple[int, int] | None
) -> tuple[str, str]:
    """[1 N D] positions of the patches, and their number, of shape [1]."""
    if size is None:
        rows, columns = (
            _patches_along(graph, axis, model.patch_size) for axis in (2, 3)
        )
        how = {"antialias": model.antialias, "offset": model.offset}
        resize = onnx_positions.Resize(graph, table, model.table_grid, how)
        return resize.patches(rows, columns), graph.add("Mul", rows, columns)
    grid = tuple(side // model.patch_size for side in size)
    resized = posembed.resize(
        table, grid, model.antialias, model.offset, model.table_grid
    )
    positions = graph.weight("pos_embed", np.asarray(resized)[:, 1:])
    return positions, graph.numbers(math.prod(grid))


def _patches_along(graph: Graph, axis: int, patch: int) -> str:
    """Number of patches along an axis of `images`, of shape [1].

    The pixels are counted by a reshape, which fails where they are not whole patches: a
    convolution would leave the rest out.
    """
    length = graph.add("Shape", "images", start=axis, end=axis + 1)
    zeros = graph.add("ConstantOfShape", length)
    whole = graph.add("Reshape", zeros, graph.numbers(-1, patch))
    return graph.add("Shape", whole, start=0, end=1)


def _embed(
    graph: Graph, tensors: Mapping, model: vit.ViT, size: tuple[int, int] | None
) -> str:
    """[B T D] tokens of `images`, with positions of that image size, or of any."""
    table = np.asarray(tensors["pos_embed"], np.float32)
    position, number = _positions(graph, table, model, size)
    patches = graph.add(
        "Conv",
        "images",
        *(
            graph.weight(f"patch_embed.proj.{k}", tensors[f"patch_embed.proj.{k}"])
            for k in ("weight", "bias")
        ),
        strides=[model.patch_size] * 2,
    )
    shape = graph.add("Concat", graph.numbers(0, model.width), number, axis=0)
    patches = graph.add("Reshape", patches, shape)
    patches = graph.add("Transpose", patches, perm=[0, 2, 1])
    patches = graph.add("Add", patches, position)
    first = [np.asarray(tensors["cls_token"], np.float32) + table[:, :1]]
    first += [tensors["register_tokens"]] if model.registers else []
    constant = graph.weight("first_tokens", np.concatenate(first, axis=1))
    images = graph.add("Shape", "images", start=0, end=1)
    shape = graph.add("Concat", images, graph.numbers(1, 1), axis=0)
    return graph.add("Concat", graph.add("Expand", constant, shape), patches, axis=1)


def _attention(graph: Graph, x: str, tensors: Mapping, name: str, heads: int) -> str:
    """Multi-head self-attention."""
    width = tensors[f"{name}.qkv.weight"].shape[1]
    qkv = graph.dense(x, tensors, f"{name}.qkv")
    qkv = graph.add("Reshape", qkv, graph.numbers(0, 0, 3, heads, width // heads))
    qkv = graph.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    parts = graph.add("Split", qkv, outputs=3, axis=0, num_outputs=3)
    q, k, v = (graph.add("Squeeze", part, graph.numbers(0)) for part in parts)
    scale = graph.weight("attention_scale", np.float32((width // heads) ** -0.5))
    keys = graph.add("Transpose", k, perm=[0, 1, 3, 2])
    scores = graph.add("MatMul", graph.add("Mul", q, scale), keys)
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
    mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = graph.add("Reshape", mixed, graph.numbers(0, 0, width))
    return graph.dense(mixed, tensors, f"{name}.proj")


def _feed_forward(graph: Graph, x: str, tensors: Mapping, name: str) -> str:
    """Two layers with GELU between them, or SwiGLU."""
    if f"{name}.fc1.weight" in tensors:
        hidden = graph.add("Gelu", graph.dense(x, tensors, f"{name}.fc1"))
        return graph.dense(hidden, tensors, f"{name}.fc2")
    both = graph.dense(x, tensors, f"{name}.w12")
    gate, value = graph.add("Split", both, outputs=2, axis=-1, num_outputs=2)
    gate = graph.add("Mul", gate, graph.add("Sigmoid", gate))
    return graph.dense(graph.add("Mul", gate, value), tensors, f"{name}.w3")


def _block(graph: Graph, x: str, tensors: Mapping, name: str, heads: int) -> str:
    """One transformer block."""
    y = graph.norm(x, tensors, f"{name}.norm1")
    y = _attention(graph, y, tensors, f"{name}.attn", heads)
    x = graph.add("Add", x, graph.scaled(y, tensors, f"{name}.ls1.gamma"))
    y = graph.norm(x, tensors, f"{name}.norm2")
    y = _feed_forward(graph, y, tensors, f"{name}.mlp")
    return graph.add("Add", x, graph.scaled(y, tensors, f"{name}.ls2.gamma"))


def _outputs(
    graph: Graph, x: str, registers: int, patches: int | None
) -> dict[str, tuple]:
    """Parts of the tokens as outputs; name -> shape between batch and width."""

    def part(start: int, end: int, name: str = "") -> str:
        bounds = (graph.numbers(n) for n in (start, end, 1))
        return graph.add("Slice", x, *bounds, name=name)

    first = 1 + registers
    graph.add("Squeeze", part(0, 1), graph.numbers(1), name="cls")
    part(first, END if patches is None else first + patches, "patches")
    found = {"cls": (), "patches": ("patches" if patches is None else patches,)}
    if registers:
        part(1, first, "registers")
        found["registers"] = (registers,)
    return found


def write(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    model: vit.ViT,
    about: Mapping,
    size: tuple[int, int] | None,
    batch: int | None = None,
) -> None:
    """An ONNX file: images [B C H W], normalised -> cls, patches[, registers].

    Weights of more than a gigabyte go into a file of their own beside it, whose name
    ends in `.data`.

    Args:
        path: file to make.
        tensors: official names, blocks unchunked; stored as float32.
        model: the backbone that they fill.
        about: what describes the weights, kept in the file's metadata.
        size: rows and columns of the images in pixels, multiples of the patch size;
            their position grid is fixed in the graph. None takes images of any such
            size, and resizes positions in the graph; others fail in a Reshape.
        batch: number of images; None leaves it open.
    Raises: ValueError if onnx is not installed.
    """
    onnx = _onnx()
    graph = Graph(onnx)
    x = _embed(graph, tensors, model, size)
    for i in range(model.depth):
        x = _block(graph, x, tensors, f"blocks.{i}", model.heads)
    x = graph.norm(x, tensors, "norm")
    grid = size and math.prod(side // model.patch_size for side in size)
    shapes = _outputs(graph, x, model.registers, grid)
    number = "batch" if batch is None else batch

    def value(name: str, *shape: int):
        kind = onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor_value_info(name, kind, (number, *shape))

    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "dinov2",
            [value("images", model.in_channels, *(size or ("height", "width")))],
            [value(name, *shape, model.width) for name, shape in shapes.items()],
            [onnx.numpy_helper.from_array(v, k) for k, v in graph.constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=9,  # the one of that opset; a newer would shut out older runtimes
        producer_name="dinov2_jax",
    )
    onnx.helper.set_model_props(proto, {"dinov2_jax": json.dumps(dict(about))})
    large = sum(v.nbytes for v in graph.constants.values()) > LIMIT
    onnx.save_model(
        proto,
        path,
        save_as_external_data=large,
        location=f"{path.name}.data" if large else None,
    )
    onnx.checker.check_model(path, full_check=True)


def stored(name: str, value: np.ndarray) -> np.ndarray:
    """An official tensor as the graph holds it: float32, linear weights (in, out)."""
    value = np.asarray(value, np.float32)
    return value.T if value.ndim == 2 and name.startswith("blocks.") else value


def about(path: pathlib.Path) -> dict:
    """What describes the weights of a file."""
    proto = _onnx().load(path, load_external_data=False)
    notes = {entry.key: entry.value for entry in proto.metadata_props}
    return json.loads(notes["dinov2_jax"])


def constants(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All constants of a file by name; linear weights are (in, out) there."""
    onnx = _onnx()
    proto = onnx.load(path)
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def run(path: pathlib.Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cls [B D] and patch [B N D] features of images [B H W C], by onnxruntime.

    Raises: ImportError if it is not installed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
    cls, patches = session.run(["cls", "patches"], given)
    return cls, patches
