"""Released heads as modules: which one a file holds, and its tensors as ours.

Names are those of the reference's evaluation code: `decode_head.` and one entry a
layer. Every tensor is used once, else an error lists what is missing or unexpected.
"""

import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, tree
from dinov2_jax.convert import finite, sift, tables
from dinov2_jax.models import probes

KERNELS = {
    "linear": (1, 0),  # (out, in)
    "conv": (2, 3, 1, 0),  # (out, in, rows, columns)
    "enlarge": (2, 3, 0, 1),  # (in, out, rows, columns)
}
"""How PyTorch's axes of a weight become ours."""

PLACE = re.compile(
    r"((?:.*\.)?)(?:conv_depth\.head\.0|conv_depth|conv_seg)\.weight|"
    r"((?:.*\.)?linear_head\.)weight"
)
"""Names that tell where a head stands; the group that fits is its prefix."""

ALONE = re.compile(r"((?:model\.)?)weight")
"""The name that a linear classifier alone is known by."""

AUXILIARY = re.compile(r"(^|\.)auxiliary_head\.$")
"""Prefix of a head that serves training alone."""

BESIDE = re.compile(r"(backbone|auxiliary_head)\.")
"""First part of the names of what a whole model has beside its head."""

UNUSED = re.compile(r".*num_batches_tracked")
"""Tensors that count training steps and compute nothing."""


def _layer(name: str, ours: str, kind: str, bias: bool = True) -> dict:
    """Official name -> (our leaf, axes) of one layer."""
    found = {f"{name}.weight": (f"params/{ours}/kernel", KERNELS[kind])}
    if bias:
        found[f"{name}.bias"] = (f"params/{ours}/bias", (0,))
    return found


def _dpt() -> dict:
    """The table of the DPT head."""
    found, blocks = {}, "reassemble_blocks"
    for i in range(4):
        readout, project = f"{blocks}.readout_projects.{i}.0", f"{blocks}.projects.{i}"
        found |= _layer(readout, f"readout_{i}", "linear")
        found |= _layer(f"{project}.conv", f"projects_{i}", "conv")
        found |= _layer(f"convs.{i}.conv", f"convs_{i}", "conv", bias=False)
        fusion, ours = f"fusion_blocks.{i}", f"fusion_blocks_{i}"
        found |= _layer(f"{fusion}.project.conv", f"{ours}/project", "conv")
        for unit in ("res_conv_unit1", "res_conv_unit2")[i == 0 :]:
            for conv in ("conv1", "conv2"):
                theirs, mine = f"{fusion}.{unit}.{conv}.conv", f"{ours}/{unit}/{conv}"
                found |= _layer(theirs, mine, "conv", bias=False)
    for i, kind in ((0, "enlarge"), (1, "enlarge"), (3, "conv")):
        found |= _layer(f"{blocks}.resize_layers.{i}", f"resize_{i}", kind)
    found |= _layer("project.conv", "project", "conv")
    for i in (0, 2, 4):
        found |= _layer(f"conv_depth.head.{i}", f"depth_{i}", "conv")
    return found


def _segmentation() -> dict:
    """The table of the segmentation head."""
    norm = {
        "weight": "params/bn/scale",
        "bias": "params/bn/bias",
        "running_mean": "batch_stats/bn/mean",
        "running_var": "batch_stats/bn/var",
    }
    found = {f"bn.{theirs}": (ours, (0,)) for theirs, ours in norm.items()}
    return found | _layer("conv_seg", "conv_seg", "conv")


TABLES = {
    "linear classifier": {
        "weight": ("params/linear/kernel", (1, 0)),
        "bias": ("params/linear/bias", (0,)),
    },
    "linear depth": _layer("conv_depth", "conv_depth", "conv"),
    "DPT depth": _dpt(),
    "segmentation": _segmentation(),
}
"""Kind of head -> {official name: (our leaf, axes)}."""

MARKS = {
    "conv_depth.head.0.weight": "DPT depth",
    "conv_depth.weight": "linear depth",
    "conv_seg.weight": "segmentation",
    "weight": "linear classifier",
}
"""A name that only one kind has -> that kind."""


def read_head(
    tensors: Mapping[str, np.ndarray],
    max_depth: float = 10.0,
    min_depth: float = 1e-3,
    upsample: int = 4,
) -> tuple[nn.Module, dict]:
    """The head that a state dict holds.

    Args:
        tensors: a state dict with a head's official names behind any prefix, or what
            training saves around it, an average of weights first. A backbone beside the
            head is left, see `parted`.
        max_depth, min_depth: metres that a linear depth head's last and first bin stand
            for, which tensors do not tell: released are 10 for NYU, 80 for KITTI.
        upsample: times that a linear depth head enlarges its map.
    Returns: the module and its variables, {params[, batch_stats]} in float32.
    Raises: ValueError if it is no head, lists what is missing and unexpected, or names
        tensors with NaN or infinity.
    """
    own, _ = parted(tensors)
    with np.errstate(over="ignore"):  # infinity is refused below
        state = {
            name: np.asarray(value, np.float32)
            for name, value in own.items()
            if not UNUSED.fullmatch(name)
        }
    kind = next(kind for mark, kind in MARKS.items() if mark in state)
    table = TABLES[kind]
    missing, unexpected = set(table) - set(state), set(state) - set(table)
    shapes = {name: len(axes) for name, (_, axes) in table.items()}
    wrong = [n for n in set(table) & set(state) if state[n].ndim != shapes[n]]
    if missing or unexpected or wrong:
        raise errors.InputError(
            f"This {kind} head is not whole: missing {tables.some(sorted(missing))}; "
            f"unexpected {tables.some(sorted(unexpected))}; "
            f"mis-shaped {tables.some(sorted(wrong))}."
        )
    finite.require(state)
    depth = {"max_depth": max_depth, "min_depth": min_depth, "upsample": upsample}
    module, variables = _module(kind, state, depth), _filled(state, table)
    _check_sizes(kind, module, variables, {ours: n for n, (ours, _) in table.items()})
    return module, variables


def parted(found: object) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of a head under its own names, and the names of what is beside it.

    Args:
        found: what a file holds, see `read_head`.
    Raises: ValueError if there is no head in it, or several of equal rank.
    """
    (path, prefix, group), others = _chosen(found)
    parent, own, beside = re.sub(r"[^.]*\.$", "", prefix), {}, []
    for name, value in group.items():
        inner = name.removeprefix(parent)
        if not name.startswith(parent) or BESIDE.match(inner):
            beside.append(name)
        else:  # beside the head it keeps its name, and shows as unexpected
            own[name.removeprefix(prefix)] = value
    for keys, _, tensors in others:
        if keys != path:
            beside += [".".join([*keys, name]) for name in tensors]
    return own, sorted(beside)


def _chosen(found: object) -> tuple[tuple, list[tuple]]:
    """(keys around, prefix, tensors of its mapping) of the head, and of the others."""
    groups = list(sift.groups(found))
    places = _places(groups, PLACE) or _places(groups, ALONE)
    if not groups:
        raise errors.InputError(
            "This is no state dict of tensors; give a released head."
        )
    if not places:
        names = [name for _, group in groups for name in group]
        raise errors.InputError(
            f"These tensors are of no released head: {tables.some(names)}. "
            f"Known are {', '.join(TABLES)}."
        )
    labels = [".".join([*path, prefix]) for path, prefix, _ in places]
    averages = [i for i, label in enumerate(labels) if sift.role(label) == "teacher"]
    best = averages if len(places) > 1 else [0]
    if len(best) != 1:
        raise errors.InputError(
            f"It holds {len(places)} heads, under {tables.some(map(repr, labels))}; save "
            "the state dict of one of them alone."
        )
    return places.pop(best[0]), places


def _places(groups: list, pattern: re.Pattern) -> list[tuple]:
    """(keys around, prefix, tensors of the mapping) of every head."""
    found = []
    for path, group in groups:
        hits = [hit for name in group if (hit := pattern.fullmatch(name))]
        prefixes = dict.fromkeys(hit[hit.lastindex] for hit in hits)
        found += [(path, p, group) for p in prefixes if not AUXILIARY.search(p)]
    return found


def _module(kind: str, state: Mapping[str, np.ndarray], depth: Mapping) -> nn.Module:
    """The module of a kind, in the sizes of the tensors; `depth` is of depth heads."""
    if kind == "linear classifier":
        return probes.LinearClassifier(len(state["bias"]))
    if kind == "linear depth":
        return probes.LinearDepth(len(state["conv_depth.bias"]), **depth)
    if kind == "segmentation":
        return probes.LinearSegmentation(len(state["conv_seg.bias"]))
    widths = (len(state[f"reassemble_blocks.projects.{i}.conv.bias"]) for i in range(4))
    width = len(state["project.conv.bias"])
    return probes.DPTDepth(tuple(widths), width, depth["min_depth"])


def _check_sizes(
    kind: str, module: nn.Module, variables: dict, official: dict[str, str]
) -> None:
    """Raises ValueError that lists tensors whose sizes do not fit the others'."""
    params = variables["params"]
    if kind == "linear classifier":
        given = jnp.zeros((1, len(params["linear"]["kernel"])))
    else:
        layers, width = 1, params.get("conv_seg", params.get("conv_depth"))
        if kind == "DPT depth":
            layers, width = 4, params["readout_0"]["kernel"].shape[1]
        else:  # a depth head sees each patch beside its cls token
            width = width["kernel"].shape[2] // (2 if kind == "linear depth" else 1)
        given = [(jnp.zeros((1, 2, 2, width)), jnp.zeros((1, width)))] * layers
    shapes = jax.eval_shape(module.init, jax.random.key(0), given)
    found = dict(zip(tree.names(variables), jax.tree.leaves(variables)))
    wanted = dict(zip(tree.names(shapes), jax.tree.leaves(shapes)))
    wrong = [
        official[leaf] for leaf in wanted if found[leaf].shape != wanted[leaf].shape
    ]
    if wrong:
        raise errors.InputError(
            f"This {kind} head does not fit together: the sizes of "
            f"{tables.some(sorted(wrong))} differ from what its other tensors need."
        )


def _filled(state: Mapping[str, np.ndarray], table: Mapping) -> dict:
    """The tree of variables."""
    return tree.nested(
        {
            leaf: np.ascontiguousarray(state[name].transpose(axes))
            for name, (leaf, axes) in table.items()
        }
    )
