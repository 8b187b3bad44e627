"""Other packages that tests compare with, and small backbones to compare.

The index's torchvision does not load its compiled operators beside a CPU build of
PyTorch; timm and transformers use none of them, so its registration is left out.
"""

import sys
import types

import jax
import numpy as np
import pytest

from dinov2_jax.convert import names
from dinov2_jax.models import vit

KINDS = [(0, "mlp"), (0, "swiglu"), (4, "mlp"), (4, "swiglu")]
"""Registers and feed-forward of the released backbones."""

TWO = [(0, "mlp"), (4, "swiglu")]
"""Of these, two that have each part once: for tests that compile models."""

stub = types.ModuleType("torchvision._meta_registrations")
sys.modules.setdefault(stub.__name__, stub)


def package(name: str, extra: str = "peers"):
    """An optional package; the test that asks is skipped without it."""
    return pytest.importorskip(name, reason=f"needs the extra {extra!r}")


def dinov2():
    """The reference's own package, of April 2023."""
    package("torch", "torch")
    return pytest.importorskip(
        "dinov2", reason="needs pip install --no-deps dinov2==0.0.1.dev2"
    )


def all_of_them() -> None:
    """Skip the test that asks unless every package is there."""
    dinov2()
    for name in ("timm", "transformers"):
        package(name)
    for name in ("onnx", "onnxruntime"):
        package(name, "onnx")


def model(registers: int = 0, ffn: str = "mlp", **changes) -> vit.ViT:
    """A narrow backbone that resizes positions as released ones do."""
    sizes = {"width": 48, "depth": 4, "heads": 3, "image_size": 70, "layerscale": 1.0}
    resize = {"antialias": registers > 0, "offset": 0.0 if registers else 0.1}
    return vit.ViT(**(sizes | resize | {"registers": registers, "ffn": ffn} | changes))


def params(built: vit.ViT, seed: int = 0) -> dict:
    """Weights of which none is 0 or 1: norms, biases and LayerScale are random too."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, *[built.patch_size] * 2, 3), np.float32)
    shapes = jax.eval_shape(built.init, jax.random.key(0), images)["params"]

    def fill(path: tuple, leaf) -> np.ndarray:
        noise = rng.normal(size=leaf.shape)
        last = path[-1].key
        if last == "kernel":
            value = noise * leaf.shape[-2] ** -0.5
        elif last == "scale":
            value = 1 + 0.3 * noise
        elif last == "gamma":
            value = 0.5 + 0.2 * noise
        else:
            value = 0.3 * noise
        return value.astype(np.float32)

    return jax.tree.map_with_path(fill, shapes)


def official(built: vit.ViT, seed: int = 0) -> dict[str, np.ndarray]:
    """The official state dict of such weights."""
    return names.backbone_to_official(params(built, seed), built.patch_size)
