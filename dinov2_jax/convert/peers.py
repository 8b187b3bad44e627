"""Features by other packages' own code, from the files that were written for them.

Each function takes the file, the arguments of `ViT` that describe it, and images
[B H W C]; it gives cls [B D] and patch [B N D] features for each stack of images, and
what ran. Packages are imported inside, and their absence is `Absent`.
"""

import functools
import importlib
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import export, names, onnx, stablehlo
from dinov2_jax.convert import timm as timm_names

Images = Sequence[np.ndarray]
Ran = tuple[list[tuple[np.ndarray, np.ndarray]], str]


class Absent(ImportError):
    """The other side's package is not installed, or has no such model."""


def _package(name: str, install: str):
    """An optional package; raises Absent, which says how to install it."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision fails with the latter
        raise Absent(f"{name} cannot be imported ({error}); {install}") from error


def _run_torch(features: Callable, stacks: Images, skip: int) -> list:
    """(cls, patches) of NHWC images by a function of NCHW tensors to [B T D] tokens."""
    torch = importlib.import_module("torch")
    found = []
    for images in stacks:
        given = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            tokens = features(given).numpy()
        found.append((tokens[:, 0], tokens[:, skip:]))
    return found


def official(path: pathlib.Path, about: Mapping, stacks: Images) -> Ran:
    """By the reference's own package; its blocks may be chunked, heads beside it.

    The package on PyPI is of April 2023 and knows no registers. For a model with them
    the file's tensors are run by `transformers`, under its names.
    """
    torch = _package("torch", "pip install 'dinov2_jax[torch]'.")
    state = torch.load(path, weights_only=True, map_location="cpu")
    if "teacher" in state:
        start = "backbone."
        state = {
            name.removeprefix(start): value
            for name, value in state["teacher"].items()
            if name.startswith(start)
        }
    state = {name: value.float() for name, value in state.items()}
    if about.get("registers", 0):
        tensors = {name: value.numpy() for name, value in state.items()}
        return _official_by_transformers(names.unchunked(tensors), about, stacks)
    hits = (re.match(r"blocks\.(\d+)\.\d+\.", name) for name in state)
    chunks = {hit[1] for hit in hits if hit}
    build = _package(
        "dinov2.models.vision_transformer", "pip install --no-deps dinov2==0.0.1.dev2."
    )
    attention = importlib.import_module("dinov2.layers").MemEffAttention
    model = build.DinoVisionTransformer(
        img_size=about["image_size"],
        patch_size=about["patch_size"],
        in_chans=about["in_channels"],
        embed_dim=about["width"],
        depth=about["depth"],
        num_heads=about["heads"],
        mlp_ratio=about["mlp_ratio"],
        qkv_bias=about["qkv_bias"],
        proj_bias=about["proj_bias"],
        ffn_bias=about["ffn_bias"],
        init_values=about["layerscale"],
        ffn_layer="swiglufused" if about["ffn"] == "swiglu" else "mlp",
        block_chunks=len(chunks),
        block_fn=functools.partial(build.Block, attn_class=attention),
    )
    model.load_state_dict(state, strict=True)
    model.eval()

    def tokens(images):
        return model.norm(model.forward_features(images)["x_prenorm"])

    return _run_torch(tokens, stacks, 1), "the reference's dinov2 package"


def _transformers():
    """The transformers package."""
    return _package("transformers", "pip install 'dinov2_jax[peers]'.")


def _official_by_transformers(
    tensors: Mapping[str, np.ndarray], about: Mapping, stacks: Images
) -> Ran:
    """Official tensors run by the model of `transformers` that has registers."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "model"
        try:
            export.write_huggingface(folder, tensors, about)
        except errors.InputError as error:
            raise Absent(
                f"no package runs registers in such a model ({error})"
            ) from error
        found, ran = huggingface(folder, about, stacks)
    return found, f"{ran}, given the file's tensors"


def _run_transformers(model, about: Mapping, stacks: Images) -> list:
    """Features by a model of `transformers`."""
    skip = 1 + about.get("registers", 0)
    return _run_torch(lambda x: model(x).last_hidden_state, stacks, skip)


def huggingface(folder: pathlib.Path, about: Mapping, stacks: Images) -> Ran:
    """By `AutoModel` of transformers; its `AutoImageProcessor` must load too.

    Raises: ValueError if it finds a tensor missing or unexpected.
    """
    transformers = _transformers()
    _package("torch", "pip install 'dinov2_jax[torch]'.")
    kind = "Dinov2WithRegisters" if about.get("registers", 0) else "Dinov2"
    processed = (folder / "preprocessor_config.json").is_file()
    needed = ["AutoModel", f"{kind}Model"]
    needed += ["AutoImageProcessor", "BitImageProcessor"] * processed
    for name in needed:  # each imports its own module, and torchvision with it
        try:
            getattr(transformers, name)
        except (ImportError, AttributeError, RuntimeError) as error:
            raise Absent(
                f"{name} of transformers cannot be imported ({error}); "
                "pip install 'dinov2_jax[peers]', with a torchvision for this torch."
            ) from error
    model, loading = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True
    )
    wrong = {name: found for name, found in loading.items() if found}
    if wrong:
        raise errors.InputError(
            f"transformers does not load {folder} strictly: {wrong}."
        )
    if processed:
        transformers.AutoImageProcessor.from_pretrained(folder)
    found = _run_transformers(model.float().eval(), about, stacks)
    return found, f"transformers {transformers.__version__}"


def timm(path: pathlib.Path, about: Mapping, stacks: Images) -> Ran:
    """By `timm.create_model(..., checkpoint_path=...)`, which loads strictly."""
    package = _package("timm", "pip install 'dinov2_jax[peers]'.")
    name, changes = timm_names.model(about)
    model = package.create_model(
        name, checkpoint_path=str(path), dynamic_img_size=True, **changes
    )
    model = model.float().eval()
    skip = 1 + about.get("registers", 0)
    ran = f"timm {package.__version__} {name}"
    return _run_torch(model.forward_features, stacks, skip), ran


def onnxruntime(path: pathlib.Path, about: Mapping, stacks: Images) -> Ran:
    """By onnxruntime, on the CPU."""
    package = _package("onnxruntime", "pip install 'dinov2_jax[onnx]'.")
    found = [onnx.run(path, images) for images in stacks]
    return found, f"onnxruntime {package.__version__}"


def jax_export(folder: pathlib.Path, about: Mapping, stacks: Images) -> Ran:
    """By `jax.export`, from the folder's program and weights."""
    return [stablehlo.run(folder, images) for images in stacks], "jax.export"
