"""Starting a run from given weights."""

import logging
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dinov2_jax import errors, runs, tree, zoo
from dinov2_jax.cli import assemble
from dinov2_jax.convert import adapt, finite, names, read
from dinov2_jax.models import dino, posembed, vit
from dinov2_jax.train.state import TrainState

log = logging.getLogger(__name__)

INTO = {"student": ("params",), "teacher": ("teacher",), "both": ("params", "teacher")}


def with_weights(
    state: TrainState, layout: TrainState, config: ConfigDict, backbone: vit.ViT
) -> TrainState:
    """The state of step 0 with `init.weights` in the networks that `init.into` names.

    The weights are all that `zoo.read_any` reads; of a workdir or a training checkpoint
    it is the teacher, with those of its heads that fit the config's. What starts fresh
    is told. Another position grid is resized.
    Raises: ValueError if the backbone is of another architecture.
    """
    given = _read(config.init, state.params["backbone"], backbone, say=True)
    given = _resized(given, backbone)
    _check_backbone(state.params, given)
    used, fresh = _fitting(state.params, given)
    if jax.process_index() == 0:
        whole = f"all {tree.count(used['backbone']):,} parameters of the backbone"
        parts = " and ".join([whole, *(name for name in used if name != "backbone")])
        print(f"init.weights={config.init.weights}: {parts}", file=sys.stderr)
        for line in fresh:
            log.warning("init.weights=%s: %s", config.init.weights, line)
    for part in INTO[config.init.into]:
        where = {name: getattr(layout, part)[name] for name in used}
        state = state.replace(**{part: getattr(state, part) | _placed(used, where)})
    return state


def _placed(params: dict, layout: dict) -> dict:
    """Parameters on the devices, in memory that nothing else refers to.

    A step gives its state's memory up, but what `device_put` returns may be the array
    it was passed or, on a CPU, the memory of a NumPy array, on several devices the same.
    """
    placed = jax.device_put(jax.device_get(params), layout)
    copies = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=layout)
    return copies(placed)


def check(config: ConfigDict, built: dino.DINO) -> None:
    """Raises ValueError if `init.weights` cannot start this model; makes nothing."""
    shapes = assemble.shapes(config, built)
    given = _read(config.init, shapes["backbone"], built.backbone)
    _check_backbone(shapes, _resized(given, built.backbone))


def _read(
    init: ConfigDict, template: dict, backbone: vit.ViT, say: bool = False
) -> dict:
    """{backbone[, heads]} of what `init.weights` names."""
    if init.into not in INTO:
        raise errors.InputError(
            f"init.into={init.into!r}; choose one of {', '.join(INTO)}."
        )
    path = pathlib.Path(init.weights).expanduser()
    try:
        run = runs.place(path)
        if run is not None:
            given, lines = runs.load(run)
            for line in lines if say and jax.process_index() == 0 else ():
                print(f"init.weights={init.weights}: {line}", file=sys.stderr)
            finite.require(dict(zip(tree.names(given), jax.tree.leaves(given))))
            return given
        how = {"prefix": init.prefix or None, "heads": init.heads or None}
        found = zoo.read_any(init.weights, partial=init.partial, **how)
        _check_about(found, backbone, init.partial)
        given = {"backbone": _backbone(found, template, backbone, init)}
        given |= {k: names.head_from_official(v) for k, v in found.heads.items()}
    except ValueError as error:
        raise errors.InputError(f"init.weights={init.weights}: {error}") from error
    if say and jax.process_index() == 0:
        zoo.tell(found, f"init.weights={init.weights}", guess=False)
    return jax.tree.map(lambda a: np.asarray(a, np.float32), given)


def _check_about(found: read.Weights, backbone: vit.ViT, partial: bool) -> None:
    """Raises ValueError that names the setting in which weights and config differ."""
    heads = found.about.get("heads")
    if heads not in (None, backbone.heads) and not found.guess:
        raise errors.InputError(
            f"these weights have {heads} attention heads, the config's model "
            f"{backbone.heads}; set model.heads={heads}."
        )
    plain = found.about["layerscale"] is None
    if plain and backbone.layerscale is not None and not partial:
        raise errors.InputError(
            "these weights have no LayerScale, as those of DINO v1 and iBOT; set "
            "model.layerscale=0, or init.partial=True to start it fresh."
        )


def _backbone(
    found: read.Weights, template: dict, backbone: vit.ViT, init: ConfigDict
) -> dict:
    """Our parameters of a file's backbone, on a square position grid."""
    state, about = found.backbone, found.about
    grid = (backbone.table_grid, about["antialias"], about["offset"], about["grid"])
    if not isinstance(about["grid"], int):
        state = adapt.grid(state, *grid)
    if init.partial:
        # What is drawn must not depend on how the run divides over devices.
        alone = backbone.clone(gather=None, remat="none")
        return zoo.filled(alone, state, True, init.weights)[0]
    return names.backbone_from_official(state, template)


def _resized(given: dict, backbone: vit.ViT) -> dict:
    """The given parameters with the position table on the backbone's grid."""
    grid = (backbone.image_size // backbone.patch_size,) * 2
    table = jnp.asarray(given["backbone"]["pos_embed"])
    table = posembed.resize(table, grid, backbone.antialias, backbone.offset)
    return given | {"backbone": given["backbone"] | {"pos_embed": table}}


def _check_backbone(params: dict, given: dict) -> None:
    """Raises ValueError that names leaves of the backbone which differ in shape."""
    wrong = _differences("backbone", params["backbone"], given["backbone"])
    if wrong:
        raise errors.InputError(
            f"The weights have {len(wrong)} other parts or shapes than the config's "
            f"model, the first being {wrong[0]}; choose the config they were trained "
            "with."
        )


def _fitting(params: dict, given: dict) -> tuple[dict, list[str]]:
    """The given parts that fit, and a line for each head that does not."""
    used, lines = {"backbone": given["backbone"]}, []
    heads = sorted((set(params) | set(given)) - {"backbone"})
    for head in heads if len(given) > 1 else []:
        if head not in params:
            lines.append(f"its {head} is not used: the config has none")
        elif head not in given:
            lines.append(f"it has no {head}, which starts fresh")
        elif wrong := _differences(head, params[head], given[head]):
            lines.append(f"its {head} is not used and starts fresh: {wrong[0]}")
        else:
            used[head] = given[head]
    return used, lines


def _differences(name: str, params: dict, given: dict) -> list[str]:
    """`name/leaf: given shape against ours` wherever two trees differ."""
    old, new = (
        dict(zip(tree.names(t), (x.shape for x in jax.tree.leaves(t))))
        for t in (params, given)
    )
    return [
        f"{name}/{leaf}: {new.get(leaf)} against {old.get(leaf)}"
        for leaf in sorted(old | new)
        if old.get(leaf) != new.get(leaf)
    ]
