"""Starting a run from given weights."""

import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dinov2_jax import checkpoint
from dinov2_jax.convert import names, read
from dinov2_jax.models import posembed, vit
from dinov2_jax.train.state import TrainState

INTO = {"student": ("params",), "teacher": ("teacher",), "both": ("params", "teacher")}


def with_weights(
    state: TrainState, layout: TrainState, config: ConfigDict, backbone: vit.ViT
) -> TrainState:
    """The state of step 0 with `init.weights` in the backbones `init.into` names.

    A workdir gives backbone and heads of its newest teacher; a .safetensors file of
    official names gives the backbone. Another position grid is resized.
    Raises: ValueError if the weights are of another architecture.
    """
    if config.init.into not in INTO:
        raise ValueError(
            f"init.into={config.init.into!r}; choose one of {', '.join(INTO)}."
        )
    path = pathlib.Path(config.init.weights)
    if path.is_dir():
        given = checkpoint.load_params(path / "checkpoints")
    elif path.suffix == ".safetensors":
        tensors = read.read_safetensors(path)
        given = {
            "backbone": names.backbone_from_official(tensors, state.params["backbone"])
        }
    else:
        raise ValueError(
            f"init.weights={path} is neither a workdir nor a .safetensors file; give "
            "one of them."
        )
    for part in INTO[config.init.into]:
        new = _filled(getattr(state, part), given, backbone)
        placed = jax.tree.map(jax.device_put, new, getattr(layout, part))
        state = state.replace(**{part: placed})
    return state


def _filled(params: dict, given: dict, backbone: vit.ViT) -> dict:
    """Parameters with the given parts in place of their own, shapes checked."""
    grid = (backbone.image_size // backbone.patch_size,) * 2
    table = jnp.asarray(given["backbone"]["pos_embed"])
    table = posembed.resize(table, grid, backbone.antialias, backbone.offset)
    given = given | {"backbone": given["backbone"] | {"pos_embed": table}}
    for name in set(given) & set(params):
        old, new = (jax.tree.map(jnp.shape, p[name]) for p in (params, given))
        if old != new:
            raise ValueError(
                f"The weights' {name} has other parts or shapes than the config's "
                f"model: {new} against {old}; choose the config they were trained with."
            )
    return params | {name: given[name] for name in set(given) & set(params)}
