"""Linear classification: every head of the protocol trained at once, with SGD."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

MOMENTUM = 0.9
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""Learning rates at a batch of 256 images."""


class Kind(NamedTuple):
    """What a head sees."""

    blocks: int  # the cls tokens of the last so many
    mean_patch: bool  # and the mean patch token of the last one

    @property
    def name(self) -> str:
        return f"blocks{self.blocks}{'_mean' if self.mean_patch else ''}"

    def columns(self, width: int, most: int) -> slice:
        """Its part of an input of cls tokens of `most` blocks and the mean patch."""
        last = (most + 1) * width if self.mean_patch else most * width
        return slice((most - self.blocks) * width, last)


class State(NamedTuple):
    """All heads between two updates; for each kind R heads, one a learning rate."""

    step: jax.Array  # int32, updates so far
    heads: dict[str, dict[str, jax.Array]]  # kind -> kernel [R F K], bias [R K]
    momentum: dict[str, dict[str, jax.Array]]  # as heads


def kinds(blocks: Sequence[int] = (1, 4)) -> tuple[Kind, ...]:
    """Every number of blocks, with and without the mean patch token."""
    return tuple(Kind(n, mean) for n in blocks for mean in (False, True))


@functools.partial(jax.jit, static_argnames=("kinds", "width", "classes", "rates"))
def start(
    key: jax.Array, kinds: tuple[Kind, ...], width: int, classes: int, rates: int
) -> State:
    """Heads before the first update.

    Args:
        key: of the initialisation, normal with deviation 0.01; biases are 0.
        kinds: of heads.
        width: of the backbone.
        classes: K.
        rates: R, heads of each kind.
    """
    ends = np.cumsum([(kind.blocks + kind.mean_patch) * width for kind in kinds])
    # Drawn as one array, which compiles in a quarter of the time of four.
    drawn = 0.01 * jax.random.normal(key, (rates, int(ends[-1]), classes))
    parts = jnp.split(drawn, ends[:-1], axis=1)
    heads = {
        kind.name: {"kernel": kernel, "bias": jnp.zeros((rates, classes))}
        for kind, kernel in zip(kinds, parts)
    }
    return State(jnp.int32(0), heads, jax.tree.map(jnp.zeros_like, heads))


def scaled(rates: Sequence[float], batch_size: int) -> np.ndarray:
    """[R] learning rates of a batch of so many images; given are those at 256."""
    return np.asarray(rates, np.float32) * batch_size / 256


@functools.partial(jax.jit, static_argnames=("kinds",), donate_argnums=0)
def update(
    state: State,
    x: jax.Array,
    labels: jax.Array,
    rates: jax.Array,
    kinds: tuple[Kind, ...],
    steps: int,
) -> tuple[State, dict[str, jax.Array]]:
    """One step of SGD of every head.

    Args:
        state: before; it is used up.
        x: [b F] cls tokens of the last blocks, in order of depth, then the mean patch.
        labels: [b] int; rows below 0 fill up the devices and count for nothing.
        rates: [R] peak learning rates; they fall to 0 as half a cosine.
        kinds: of the heads.
        steps: of the whole training.
    Returns: the state after it, and kind -> [R] losses before it.
    Source: arXiv:2304.07193 section 7.1, the reference's linear evaluation.
    """
    heads, momentum, losses = {}, {}, {}
    now = rates * (1 + jnp.cos(jnp.pi * state.step / steps)) / 2
    counts = labels >= 0
    for kind in kinds:
        part = _part(x, kind, kinds)

        def one(head, before, rate, part=part):
            def loss(head):
                logits = _logits(head, part)
                each = optax.losses.softmax_cross_entropy_with_integer_labels(
                    logits, jnp.maximum(labels, 0)
                )
                return each.mean(where=counts)

            value, grad = jax.value_and_grad(loss)(head)
            after = jax.tree.map(lambda m, g: MOMENTUM * m + g, before, grad)
            return jax.tree.map(lambda p, m: p - rate * m, head, after), after, value

        name = kind.name
        heads[name], momentum[name], losses[name] = jax.vmap(one)(
            state.heads[name], state.momentum[name], now
        )
    return State(state.step + 1, heads, momentum), losses


def _part(x: jax.Array, kind: Kind, kinds: Sequence[Kind]) -> jax.Array:
    """The columns that a kind of head sees."""
    most = max(k.blocks for k in kinds)
    return x[:, kind.columns(x.shape[1] // (most + 1), most)]


def _logits(head: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """[b K] of one head."""
    kernel = head["kernel"]
    return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + head["bias"]


@functools.partial(jax.jit, static_argnames=("kinds",))
def right(
    heads: dict, x: jax.Array, labels: jax.Array, kinds: tuple[Kind, ...]
) -> dict[str, jax.Array]:
    """How many of some rows each head gets right.

    Args:
        heads: of a State.
        x: as `update`.
        labels: [b] int; below 0 is never right.
        kinds: of the heads.
    Returns: kind -> [R] int32.
    """
    found = {}
    for kind in kinds:
        part = _part(x, kind, kinds)
        logits = jax.vmap(_logits, (0, None))(heads[kind.name], part)
        found[kind.name] = (logits.argmax(-1) == labels).sum(1)
    return found


def accuracies(
    heads: dict,
    x: np.ndarray,
    labels: np.ndarray,
    kinds: tuple[Kind, ...],
    block: int = 1024,
) -> dict[str, np.ndarray]:
    """Share of all rows that each head gets right: kind -> [R]."""
    total = {kind.name: 0 for kind in kinds}
    for first in range(0, len(x), block):
        rows = np.asarray(x[first : first + block])
        own = labels[first : first + block]
        fill = min(block, len(x)) - len(rows)  # one shape, one compilation
        rows = np.pad(rows, ((0, fill), (0, 0)))
        own = np.pad(own, (0, fill), constant_values=-1)
        for name, count in right(heads, rows, own, kinds).items():
            total[name] = total[name] + np.asarray(count)
    return {name: count / len(x) for name, count in total.items()}


def best(found: dict[str, np.ndarray]) -> tuple[str, int]:
    """(kind, number of the learning rate) of the largest accuracy, the first of equals."""
    name = max(found, key=lambda name: found[name].max())
    return name, int(found[name].argmax())


def guesses(
    heads: dict,
    chosen: tuple[str, int],
    x: np.ndarray,
    kinds: tuple[Kind, ...],
    among: np.ndarray | None = None,
) -> np.ndarray:
    """The classes that one head guesses: [n] int64, numbers of all or places in `among`.

    Arguments are those of `logits`.
    """
    return logits(heads, chosen, x, kinds, among).argmax(1)


def logits(
    heads: dict,
    chosen: tuple[str, int],
    x: np.ndarray,
    kinds: tuple[Kind, ...],
    among: np.ndarray | None = None,
) -> np.ndarray:
    """Logits of one head.

    Args:
        heads: of a State.
        chosen: (kind, number of the learning rate), as of `best`.
        x: [n F], as `update`.
        kinds: of the heads.
        among: [k] classes to choose from; None for all.
    Returns: [n K] or, of those in `among`, [n k].
    """
    name, rate = chosen
    kind = next(kind for kind in kinds if kind.name == name)
    kernel, bias = (np.asarray(heads[name][k][rate]) for k in ("kernel", "bias"))
    found = np.asarray(_part(x, kind, kinds)) @ kernel + bias
    return found if among is None else found[:, among]
