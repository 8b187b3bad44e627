"""Heads of pixels in files: their tensors, and what their predictions depend on."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from dinov2_jax import errors, headfile, tree, zoo
from dinov2_jax.cli.results import Job
from dinov2_jax.convert import export
from dinov2_jax.convert import probes as convert


def note(job: Job, blocks: tuple[int, ...], norm: bool, crop: tuple[int, int], **more):
    """What a head's file tells of how it was trained, besides its tensors.

    Args:
        job: weights and settings.
        blocks: numbers of the blocks that it sees, with the final norm or without.
        crop: (height, width) in pixels that it was trained on.
        more: what else its predictions depend on.
    """
    model = job.backbone.model
    sizes = ("width", "depth", "patch_size", "registers")
    return {
        "task": job.task,
        "blocks": list(blocks),
        "norm": norm,
        "crop": list(crop),
        "backbone": {key: getattr(model, key) for key in sizes},
        "weights_sha256": job.backbone.sha256,
        **more,
    }


FITTING = ("crop", "task", "weights_sha256")
"""What may differ between a head and its use: sizes, the protocol, a fine-tuning."""


def given_head(job: Job, kind: type, expected: Mapping, **options):
    """The released or trained head of a job, instead of one that is trained here.

    Args:
        job: whose setting `head` is of `zoo.load_head`; it is warned of what no file
            tells.
        kind: class of the module.
        expected: `note` of what the settings and the weights make.
        options: of `zoo.load_head`.
    Raises: ValueError that names what the head's file tells otherwise.
    """
    source = job.settings.head
    told = headfile.note(source)
    use = "depth" if "max_depth" in expected else "segmentation"
    if not str(told.get("head", use)).endswith(use):
        raise errors.InputError(
            f"head={source} is a head for {told['head']}, not for {use}; choose another "
            "head or task."
        )
    wrong = [
        f"{key}={told[key]} and not {expected[key]}"
        for key in expected
        if key in told and key not in FITTING and told[key] != expected[key]
    ]
    if wrong:
        raise errors.InputError(
            f"head={source} was trained with {', '.join(wrong)}; set what it was trained "
            "with, or choose another head."
        )
    sha = told.get("weights_sha256", expected["weights_sha256"])
    if sha != expected["weights_sha256"]:
        job.warn(f"head={source} was trained on other weights.")
    if "max_depth" in expected and "max_depth" not in told:
        job.warn(
            f"head={source} does not tell the range of its depths: min_depth="
            f"{expected['min_depth']:g} and max_depth={expected['max_depth']:g} are "
            "taken."
        )
    head, variables = zoo.load_head(source, **options)
    if type(head) is not kind:
        raise errors.InputError(
            f"head={source} is a {type(head).__name__}; this needs a {kind.__name__}."
        )
    return head, variables


def save_head(path: pathlib.Path, kind: str, variables: Mapping, told: Mapping) -> None:
    """A head with official names, which `load_head` and PyTorch's modules read."""
    variables = jax.device_get(variables)
    leaves = dict(zip(tree.names(variables), jax.tree.leaves(variables)))
    tensors = {
        name: leaves[leaf].transpose(np.argsort(axes))
        for name, (leaf, axes) in convert.TABLES[kind].items()
    }
    export.write_safetensors(path, tensors, {"head": kind, **told})
