"""The network asked for, out of what a file holds around it."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import lookalikes, tables

WHICH = ("teacher", "student")
HEADS = ("dino_head", "ibot_head")

NEEDED = (
    "Give a DINOv2 backbone: an official .pth, .safetensors or timm file, a Hugging Face "
    "folder, or a training checkpoint of the reference"
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
        return role(self.label)

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Its tensors, and what else has its prefix, without the prefix."""
        start = self.prefix
        return {
            n[len(start) :]: v for n, v in self.group.items() if n.startswith(start)
        }


def role(label: str) -> str | None:
    """The network that a place of tensors is called after; see `Network`."""
    place = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", label).lower()
    return next((role for role, words in ROLES.items() if words.search(place)), None)


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
    mappings = list(groups(found))
    networks = [
        network for path, group in mappings for network in _networks(path, group)
    ]
    if not networks:
        raise errors.InputError(_unknown(found, mappings))
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


def groups(found: object) -> Iterator[tuple[tuple[str, ...], dict[str, np.ndarray]]]:
    """(keys, tensors by name) of every mapping in a file that holds tensors.

    Lists count as mappings of their indices: a state dict may stand in one.
    """
    stack = [((), found)] if isinstance(found, Mapping | list | tuple) else []
    while stack:
        path, node = stack.pop()
        pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
        inner = {str(key): value for key, value in pairs}
        tensors = {n: v for n, v in inner.items() if isinstance(v, np.ndarray)}
        if tensors:
            yield path, _unwrapped(tensors)
        for key, value in reversed(inner.items()):
            if isinstance(value, Mapping | list | tuple):
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
    if "norm.weight" not in own:  # `translate` reads it in its place
        beside -= {"fc_norm.weight", "fc_norm.bias"}
    rest += [chosen.prefix + name for name in own if name in beside]
    if not rest:
        return ""
    counts = collections.Counter(_module(name) for name in rest)
    listed = [f"{name} ({n})" if n > 1 else name for name, n in counts.items()]
    number = "1 tensor" if len(rest) == 1 else f"{len(rest)} tensors"
    return f"left out {number} beside the backbone: {tables.some(listed)}"


def _module(name: str) -> str:
    """`neck.*` of `neck.0.weight`; a name without dots is itself."""
    first, dot, _ = name.partition(".")
    return f"{first}.*" if dot else name


def _unknown(found: object, mappings: list) -> str:
    """The error of a file without a backbone."""
    tensors = {name: value for _, group in mappings for name, value in group.items()}
    keys = [str(key) for key in found] if isinstance(found, Mapping) else []
    kind = lookalikes.anything([*tensors, *keys, *(f"{key}." for key in keys)])
    if kind:
        return f"It looks like {kind}, not a DINOv2 backbone. {NEEDED}."
    if not tensors:
        return f"It holds no weights by name: it is a {type(found).__name__}. {NEEDED}."
    return f"Its tensors are of no format that is known: {tables.some(tensors, 3)}. {NEEDED}."
