"""Starting a run from given weights."""

import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dinov2_jax import checkpoint, tree
from dinov2_jax.cli import assemble
from dinov2_jax.convert import names, read
from dinov2_jax.models import dino, posembed, vit
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
    given = _read(config.init, state.params["backbone"])
    for part in INTO[config.init.into]:
        new = _filled(getattr(state, part), given, backbone)
        placed = jax.tree.map(jax.device_put, new, getattr(layout, part))
        state = state.replace(**{part: placed})
    return state


def check(config: ConfigDict, built: dino.DINO) -> None:
    """Raises ValueError if `init.weights` cannot start this model; makes nothing."""
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda k: assemble.initial_params(config, built, k), key)
    given = _read(config.init, shapes["backbone"])
    _check_shapes(shapes, _resized(given, built.backbone))


def _read(init: ConfigDict, template: dict) -> dict:
    """{backbone[, heads]} of the file or workdir that `init.weights` names."""
    if init.into not in INTO:
        raise ValueError(f"init.into={init.into!r}; choose one of {', '.join(INTO)}.")
    path = pathlib.Path(init.weights).expanduser()
    if path.is_dir():
        return checkpoint.load_params(path / "checkpoints")
    if path.suffix == ".safetensors":
        tensors = read.read_safetensors(path)
        return {"backbone": names.backbone_from_official(tensors, template)}
    raise ValueError(
        f"init.weights={path} is neither a workdir nor a .safetensors file; give one "
        "of them."
    )


def _filled(params: dict, given: dict, backbone: vit.ViT) -> dict:
    """Parameters with the given parts in place of their own, shapes checked."""
    given = _resized(given, backbone)
    _check_shapes(params, given)
    return params | {name: given[name] for name in set(given) & set(params)}


def _resized(given: dict, backbone: vit.ViT) -> dict:
    """The given parameters with the position table on the backbone's grid."""
    grid = (backbone.image_size // backbone.patch_size,) * 2
    table = jnp.asarray(given["backbone"]["pos_embed"])
    table = posembed.resize(table, grid, backbone.antialias, backbone.offset)
    return given | {"backbone": given["backbone"] | {"pos_embed": table}}


def _check_shapes(params: dict, given: dict) -> None:
    """Raises ValueError naming leaves that differ in parts that both trees have."""
    both = set(params) & set(given)
    old, new = (
        dict(zip(tree.names(t), (x.shape for x in jax.tree.leaves(t))))
        for t in ({name: t[name] for name in both} for t in (params, given))
    )
    wrong = sorted(name for name in old | new if old.get(name) != new.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"The weights have {len(wrong)} other parts or shapes than the config's "
            f"model, the first being {name}: {new.get(name)} against {old.get(name)}; "
            "choose the config they were trained with."
        )
