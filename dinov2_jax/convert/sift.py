"""A backbone under official names, out of what a file holds around it."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import finite, huggingface, lookalikes, names, tables, timm

WHICH = ("teacher", "student")
HEADS = ("dino_head", "ibot_head")

NEEDED = (
    "Give a DINOv2 backbone: an official .pth file, a .safetensors file, a Hugging Face "
    "folder, a timm file, or a training checkpoint of the reference"
)

_BACKBONE = (
    r"cls_token|pos_embed|patch_embed\.proj\.weight|blocks\.0\.(0\.)?attn\.qkv\.weight"
)
_TRANSFORMERS = (
    r"embeddings\.(cls_token|position_embeddings|patch_embeddings\.projection\.weight)|"
    r"encoder\.layer\.0\.norm1\.weight"
)
ANCHORS = tuple(
    re.compile(rf"((?:.*\.)?)(?:{name})") for name in (_BACKBONE, _TRANSFORMERS)
)
"""Names of a backbone, official or of `transformers`, behind any prefix; two of one
form under one prefix make a backbone."""

WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module)\.")
"""What DDP, FSDP and torch.compile put into names."""

ROLES = {
    "student": re.compile(r"(^|[._])student([._]|$)"),
    "teacher": re.compile(
        r"(^|[._])(teacher|ema|momentum|avg|averaged?|swa|target)([._]|$)"
    ),
}
"""Network -> how the place of its tensors is called."""

BESIDE = re.compile(
    r"(\w*heads?(_\w+)?|fc|fc_norm|classifiers?\w*|linear\w*|neck|project(or|ion)|"
    r"predictor|pooler|prototypes|criterion|loss|\w+_loss|n_averaged)(\.|$)"
)
"""First part of the names of a task's head, a loss or a counter beside a backbone."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone that a file holds."""

    path: tuple[str, ...]  # keys of the mappings around it
    prefix: str  # of its names, empty or with a dot at its end
    group: Mapping[str, np.ndarray]  # all tensors of its mapping

    @property
    def label(self) -> str:
        """Where it stands, such as `state_dict.model.`; empty at the top."""
        return "".join(f"{key}." for key in self.path) + self.prefix

    @property
    def parent(self) -> str:
        """The prefix of the network whose backbone it is."""
        return self.prefix.removesuffix("backbone.")

    @property
    def role(self) -> str | None:
        """`teacher` (an average of weights too), `student`, or None."""
        hits = (role for role, words in ROLES.items() if words.search(self.label))
        return next(hits, None)

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Its tensors, and what else has its prefix, without the prefix."""
        start = self.prefix
        return {
            n[len(start) :]: v for n, v in self.group.items() if n.startswith(start)
        }


def network(
    found: object, which: str, prefix: str | None = None
) -> tuple[Network, list[str]]:
    """The backbone asked for, out of what training saves around it.

    An optimizer, schedule, iteration or config beside it is no weight, and left.

    Args:
        found: what a file holds.
        which: `teacher` or `student`, where it holds both. An average of weights
            (`state_dict_ema`, `model_ema`) is a teacher, the weights beside it the
            student's.
        prefix: of the names of the backbone's tensors, with the keys around them or
            without; None if that of `which` is the only one.
    Returns: the network, and lines on what was chosen.
    Raises: ValueError that says what it looks like.
    """
    groups = list(_groups(found))
    networks = [network for path, group in groups for network in _networks(path, group)]
    if not networks:
        raise errors.InputError(_unknown(found, groups))
    # Beside a backbone of ours another model's encoder does not count.
    networks = [n for n in networks if not lookalikes.model(n.tensors)] or networks
    chosen = _chosen(_under(networks, prefix), which, prefix is not None)
    others = [network for network in networks if network is not chosen]
    lines = [_left_out(chosen, others)]
    if others:
        lines.insert(
            0,
            f"took the backbone under {chosen.label!r}, not that under {_labels(others)}; "
            "which= (--which) and prefix= (--prefix) choose",
        )
    elif chosen.prefix and chosen.role is None:
        lines.insert(0, f"took the backbone under the prefix {chosen.prefix!r}")
    return chosen, [line for line in lines if line]


def _chosen(fitting: list[Network], which: str, named: bool) -> Network:
    """The backbone of `which`; one alone is it, if it was named or has no role."""
    if len(fitting) == 1:
        only = fitting[0]
        if not named and only.role not in (None, which):
            raise errors.InputError(
                f"It holds only a {only.role}; ask for which={only.role!r}."
            )
        return only
    asked = [network for network in fitting if network.role == which]
    if not asked and which == "student":
        asked = [network for network in fitting if network.role is None]
    if len(asked) != 1:
        raise errors.InputError(
            f"It holds {len(fitting)} backbones, under the prefixes {_labels(fitting)}; "
            "choose one by prefix= (--prefix, init.prefix)."
        )
    return asked[0]


def _groups(found: object) -> Iterator[tuple[tuple[str, ...], dict[str, np.ndarray]]]:
    """(keys, tensors by name) of every mapping in a file that holds tensors."""
    stack = [((), found)] if isinstance(found, Mapping) else []
    while stack:
        path, node = stack.pop()
        inner = {str(key): value for key, value in node.items()}
        tensors = {n: v for n, v in inner.items() if isinstance(v, np.ndarray)}
        if tensors:
            yield path, _unwrapped(tensors)
        for key, value in reversed(inner.items()):
            if isinstance(value, Mapping):
                stack.append(((*path, key), value))


def _unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without what wrappers put into them."""
    found = {WRAPPERS.sub("", name): value for name, value in tensors.items()}
    if len(found) != len(tensors):
        raise errors.InputError("Some tensors are there twice, once inside a wrapper.")
    return found


def _networks(path: tuple[str, ...], group: Mapping) -> list[Network]:
    """The backbones of one mapping, in the order of their names."""
    counts = collections.Counter()
    for name in group:
        for style, anchors in enumerate(ANCHORS):
            hit = anchors.fullmatch(name)
            if hit:
                counts[hit[1], style] += 1
    prefixes = dict.fromkeys(prefix for (prefix, _), n in counts.items() if n > 1)
    return [Network(path, prefix, group) for prefix in prefixes]


def _under(networks: list[Network], prefix: str | None) -> list[Network]:
    """The backbones whose place is, or ends in, a prefix."""
    if prefix is None:
        return networks
    start = WRAPPERS.sub("", f"{prefix.rstrip('.')}.").lstrip(".")
    hits = [network for network in networks if network.prefix == start]
    hits = hits or [n for n in networks if f".{n.label}".endswith(f".{start}")]
    if not hits:
        raise errors.InputError(
            f"prefix={prefix!r}: no backbone stands there, but under "
            f"{_labels(networks)}."
        )
    return hits


def _labels(networks: Iterable[Network]) -> str:
    """Their places, for a line."""
    return tables.some([repr(network.label) for network in networks])


def _left_out(chosen: Network, others: list[Network]) -> str:
    """A line on the tensors beside a backbone, of no other network; or nothing."""
    rest, own = [], chosen.tensors
    if chosen.prefix:
        starts = [chosen.prefix, *(f"{chosen.parent}{head}." for head in HEADS)]
        starts += [n.parent or n.prefix for n in others if n.path == chosen.path]
        used = tuple(filter(None, starts))
        rest = [name for name in chosen.group if not name.startswith(used)]
    beside = {name for name in own if BESIDE.match(name)}
    if "norm.weight" not in own:  # `_mended` reads it in its place
        beside -= {"fc_norm.weight", "fc_norm.bias"}
    rest += [chosen.prefix + name for name in own if name in beside]
    if not rest:
        return ""
    counts = collections.Counter(_module(name) for name in rest)
    listed = [f"{name} ({n})" if n > 1 else name for name, n in counts.items()]
    return f"left out {len(rest)} tensors beside the backbone: {tables.some(listed)}"


def _module(name: str) -> str:
    """`neck.*` of `neck.0.weight`; a name without dots is itself."""
    first, dot, _ = name.partition(".")
    return f"{first}.*" if dot else name


def _unknown(found: object, groups: list) -> str:
    """The error of a file without a backbone."""
    tensors = {name: value for _, group in groups for name, value in group.items()}
    keys = [str(key) for key in found] if isinstance(found, Mapping) else []
    kind = lookalikes.anything([*tensors, *keys, *(f"{key}." for key in keys)])
    if kind:
        return f"It looks like {kind}, not a DINOv2 backbone. {NEEDED}."
    if not tensors:
        return f"It looks like no weights: a {type(found).__name__}. {NEEDED}."
    return (
        f"It holds {len(tensors)} tensors of no format that is known, the first being "
        f"{tables.some(tensors, 3)}. {NEEDED}."
    )


@dataclasses.dataclass(frozen=True)
class Sifted:
    """A network under official names."""

    backbone: dict[str, np.ndarray]  # unchunked
    heads: dict[str, dict[str, np.ndarray]]  # by name, or empty
    format: str  # official, training, huggingface or timm
    lines: list[str]  # what was read otherwise than it stands in the file


def official(
    network: Network, partial: bool = False, described: bool = False
) -> Sifted:
    """The backbone of a network under official names, and its heads.

    Args:
        network: of `network`.
        partial: take what there is; else a tensor too few or too many is an error.
        described: whether a description says that it is a DINOv2 backbone: a grid of
            3x5 patches and cls have as many positions as one of 4x4 without cls.
    Raises: ValueError that says what else it looks like.
    """
    tensors = {n: v for n, v in network.tensors.items() if not BESIDE.match(n)}
    kind = None if described else lookalikes.model(tensors)
    if kind:
        kind = lookalikes.model(network.group) or kind
        raise errors.InputError(
            f"It looks like {kind}, not a DINOv2 backbone. {NEEDED}."
        )
    tensors, lines = _mended(tensors, network.tensors)
    heads = _heads(network) if network.prefix.endswith("backbone.") else {}
    if huggingface.recognises(tensors):
        found, label = huggingface.to_official(tensors, partial), "huggingface"
    elif timm.recognises(tensors):
        found, label = timm.to_official(tensors, partial), "timm"
    else:
        found = names.unchunked(tensors)
        label = "training" if heads or network.role else "official"
    for name, value in found.items():
        if np.asarray(value).dtype not in finite.EXPONENTS:
            raise errors.InputError(
                f"{name} is of type {np.asarray(value).dtype}; weights need float16, "
                "bfloat16, float32 or float64. Give a file that is not quantised."
            )
    if not {"mask_token", "embeddings.mask_token"} & set(tensors):
        lines.append("it has no mask token; zeros stand in for it")
        cls = np.asarray(found.get("cls_token", np.zeros((1, 1, 1), np.float32)))
        found.setdefault("mask_token", np.zeros(cls.shape[-1:], cls.dtype)[None])
    if not any(n.endswith("ls1.gamma") for n in found):
        lines.append(
            "it has no LayerScale: a plain ViT, such as DINO v1's, iBOT's or a "
            "supervised one"
        )
    return Sifted(found, heads, label, lines)


def _mended(
    tensors: dict[str, np.ndarray], beside: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors with other names for the same parts replaced, and lines that tell it."""
    found, lines = dict(tensors), []
    if "masked_embed" in found:  # iBOT's name
        found["mask_token"] = found.pop("masked_embed")
    if "norm.weight" not in found and {"fc_norm.weight", "fc_norm.bias"} <= set(beside):
        found |= {f"norm.{k}": beside[f"fc_norm.{k}"] for k in ("weight", "bias")}
        lines.append(
            "fc_norm, which norms the mean of the patches, is read as the final norm, "
            "which norms each token"
        )
    return found, lines


def _heads(network: Network) -> dict[str, dict[str, np.ndarray]]:
    """The DINO and iBOT heads beside a backbone, by name."""
    found = {}
    for head in HEADS:
        start = f"{network.parent}{head}."
        part = {
            n[len(start) :]: v for n, v in network.group.items() if n.startswith(start)
        }
        if part:
            found[head] = part
    return found
