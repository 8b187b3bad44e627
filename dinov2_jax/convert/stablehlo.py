"""A backbone as StableHLO, called through `jax.export` without this package.

The folder holds `model.jax_export` (the program, serialized and versioned),
`weights.safetensors` (its first argument) and `about.json` (how to call it). Weights
stay outside the program: a serialized program is limited to 2 GB, and the largest
backbone has 4.5.
"""

import json
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from dinov2_jax import tree
from dinov2_jax.convert import export, huggingface
from dinov2_jax.models import vit

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

CALL = """\
import jax, safetensors.numpy
exported = jax.export.deserialize(open("model.jax_export", "rb").read())
weights = safetensors.numpy.load_file("weights.safetensors")
features = exported.call(weights, images)  # features["cls"], features["patches"]
"""


def leaves(params: Mapping) -> dict[str, np.ndarray]:
    """Parameters by name, `blocks/attn/qkv/kernel`."""
    return dict(zip(tree.names(params), map(np.asarray, jax.tree.leaves(params))))


def program(
    model: vit.ViT,
    weights: Mapping[str, np.ndarray],
    size: tuple[int, int],
    batch: int | None,
) -> jax_export.Exported:
    """The forward pass of a backbone for images of one size.

    Args:
        model: the backbone.
        weights: leaves of its parameters by name.
        size: rows and columns of the images in pixels, multiples of the patch size.
        batch: number of images; None leaves it open.
    Returns: a program of (weights, images [B H W C] float32, normalised) that
        gives {cls [B D], registers [B R D], patches [B N D]}; its products have full
        float32 precision on every platform.
    """

    def features(weights: dict, images: jax.Array) -> dict[str, jax.Array]:
        found = model.apply({"params": tree.nested(weights)}, images)
        names = ("cls", "registers", "patches")
        return {name: getattr(found, name) for name in names}

    (number,) = jax_export.symbolic_shape("b") if batch is None else (batch,)
    shape = (number, *size, model.in_channels)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in weights.items()}
    with jax.default_matmul_precision("highest"):
        return jax_export.export(jax.jit(features), platforms=PLATFORMS)(
            shapes, jax.ShapeDtypeStruct(shape, jnp.float32)
        )


def write(
    folder: pathlib.Path,
    model: vit.ViT,
    params: Mapping,
    about: Mapping,
    size: tuple[int, int],
    batch: int | None = None,
) -> None:
    """The folder described above.

    Args:
        folder: folder to make.
        model: the backbone.
        params: its parameters.
        about: what describes the weights, kept in `about.json`.
        size: rows and columns of the images in pixels, fixed in the program.
        batch: number of images; None leaves it open.
    """
    weights = leaves(params)
    exported = program(model, weights, size, batch)
    folder.mkdir(parents=True)
    (folder / "model.jax_export").write_bytes(exported.serialize())
    export.write_safetensors(folder / "weights.safetensors", weights, about)
    images = ["batch" if batch is None else batch, *size, model.in_channels]
    note = {
        "format": "jax.export",
        "calling_convention_version": exported.calling_convention_version,
        "jax_version": jax.__version__,
        "platforms": list(exported.platforms),
        "images": {"shape": images, "dtype": "float32", "scaled_to": "[0, 1]"}
        | (huggingface.PIXELS if model.in_channels == 3 else {}),
        "outputs": ["cls", "patches", "registers"],
        "call": CALL.splitlines(),
        "about": dict(about),
    }
    text = json.dumps(note, indent=2) + "\n"
    (folder / "about.json").write_text(text, encoding="utf-8")


def about(folder: pathlib.Path) -> dict:
    """What describes the weights of a folder."""
    return json.loads((folder / "about.json").read_text(encoding="utf-8"))["about"]


def run(folder: pathlib.Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cls [B D] and patch [B N D] features by the program and weights of a folder."""
    exported = jax_export.deserialize((folder / "model.jax_export").read_bytes())
    weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    found = exported.call(weights, images)
    return np.asarray(found["cls"]), np.asarray(found["patches"])
