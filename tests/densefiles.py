"""Real photographs with maps, written as folders, and a small backbone for them."""

import pathlib
import types
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from dinov2_jax import tree
from dinov2_jax.cli import frozen, results
from dinov2_jax.data import demo
from dinov2_jax.models import vit


def backbone(depth: int = 4):
    """A narrow backbone with random weights, loaded, that sees where a patch lies."""
    model = vit.ViT(
        width=48, depth=depth, heads=3, patch_size=8, image_size=64, layerscale=1.0
    )
    rng = np.random.default_rng(0)

    def drawn(name: str, leaf) -> np.ndarray:
        if name.endswith(("scale", "gamma")):
            return np.ones(leaf.shape, np.float32)
        spread = 0.04 if name.endswith("kernel") else 0.0
        # As large as trained ones; those of a fresh model are as small as noise.
        spread = 0.4 if name == "pos_embed" else spread
        return (spread * rng.normal(size=leaf.shape)).astype(np.float32)

    params = tree.map_named(drawn, vit.shapes(model))
    return frozen.Backbone(model, params, "0" * 64)


def job(task, backbone, specs: tuple[str, str], out: pathlib.Path, **settings):
    """What the command would hand to a task (a module), with some settings."""
    given = types.SimpleNamespace(**(task.SETTINGS | settings))
    train, val = specs
    return results.Job("task", "w", backbone, train, val, {}, {}, out, out / "c", given)


def coins() -> tuple[np.ndarray, np.ndarray]:
    """The coins picture and what a simple rule takes for coins.

    A pixel is of a coin where the picture, blurred over 3 pixels, is brighter than
    blurred over 40: the light falls off towards the bottom, so that one threshold for
    all would take the upper edge for coins, too. There, 22 rows are left out (255).
    """
    image = demo.photograph("coins")
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    near, far = (cv2.GaussianBlur(gray, (0, 0), sigma) for sigma in (3, 40))
    labels = (near > far).astype(np.uint8)
    labels[:22] = 255
    return image, labels


def save(folder: pathlib.Path, name: str, image: np.ndarray, target: np.ndarray):
    """An image and its map as partners; depth, floating point, as millimetres."""
    for part in ("images", "maps"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / "images" / f"{name}.png")
    if target.dtype.kind == "f":
        target = np.round(np.nan_to_num(target) * 1000).astype(np.uint16)
    Image.fromarray(target).save(folder / "maps" / f"{name}.png")


def coin_folders(root: pathlib.Path) -> tuple[str, str]:
    """Specs of the left two thirds of the coins, in four parts, and of the right."""
    image, labels = coins()
    for i, (rows, columns) in enumerate(
        (slice(y, y + 152), slice(x, x + 128)) for y in (0, 151) for x in (0, 128, 256)
    ):
        part = root / ("val" if columns.start == 256 else "train")
        save(part, f"{i}", image[rows, columns], labels[rows, columns])
    for part in ("train", "val"):
        (root / part / "maps" / "classes.txt").write_text("ground\ncoin\n")
    return tuple(
        f"pairs:{root / p / 'images'},{root / p / 'maps'}" for p in ("train", "val")
    )


def scene_folders(root: pathlib.Path, otherwise: Callable) -> tuple[str, str]:
    """Specs of two thirds of a scene, as four upright strips, and of the rest.

    The scene is the stereo pair of scikit-image with the depth of its disparity, or
    (image, metres) of `otherwise` where that is not installed.
    """
    try:
        image, _, disparity = demo.stereo()
        metres = 193.001 * 994.978 / (disparity + 31.086) / 1000
        image, metres = image[::3, ::3], metres[::3, ::3]
    except ValueError:
        image, metres = otherwise()
    wide = image.shape[1] // 6
    for i in range(6):
        strip = slice(wide * i, wide * (i + 1))
        part = root / ("val" if i % 3 == 1 else "train")
        save(part, f"{i}", image[:, strip], metres[:, strip])
    return tuple(
        f"pairs:{root / p / 'images'},{root / p / 'maps'}" for p in ("train", "val")
    )
