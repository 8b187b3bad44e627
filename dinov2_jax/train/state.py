"""All that a continuation needs besides the data position and the config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class Centers:
    """Running means of the teacher's logits that centering subtracts."""

    dino: jax.Array  # [K] float32
    ibot: jax.Array  # [K'] float32


@struct.dataclass
class TrainState:
    """Student, teacher (both backbone and heads), optimiser and centres at a step."""

    step: jax.Array  # int32, updates tried so far
    params: Any
    teacher: Any
    opt_state: Any
    centers: Centers
    rejected: jax.Array  # int32, non-finite steps in a row that were not applied


def create(
    params: Any,
    teacher: Any,
    tx: optax.GradientTransformation,
    prototypes: tuple[int, int],
) -> TrainState:
    """The state of step 0.

    Args:
        params: student {backbone, dino_head[, ibot_head]}.
        teacher: same tree; in plain pretraining an exact copy.
        tx: the optimiser.
        prototypes: K of the cls head and K' of the head that serves patches.
    """
    centers = Centers(*(jnp.zeros(k, jnp.float32) for k in prototypes))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, teacher, tx.init(params), centers, zero)
