"""DINO's projection head: an MLP, a sphere, and weight-normalised prototypes."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinov2_jax import errors
from dinov2_jax.models import layers


def normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x / max(|x|, eps) along the last axis, in float32, with a gradient at zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias: row j is g_j v_j / |v_j|.

    Source: arXiv:1602.07868. `g` starts at 1 and is trained, as in the reference.
    """

    number: int
    dtype: jnp.dtype = jnp.float32
    gather: Callable | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[... E] -> [... K]."""
        bound = x.shape[-1] ** -0.5

        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        v = self.param("v", uniform, (x.shape[-1], self.number), jnp.float32)
        g = self.param("g", nn.initializers.ones, (self.number,), jnp.float32)
        weight = v * (g * jax.lax.rsqrt(jnp.sum(v * v, axis=0)))
        gather = self.gather or (lambda w, axis: w.astype(self.dtype))
        return layers.dot(x.astype(self.dtype), gather(weight, -1))


class Head(nn.Module):
    """MLP of `layers` linear layers, then L2 normalisation, then prototypes.

    Fields: `prototypes` K; `hidden` and `bottleneck` widths; `layers` >= 1; `gather`
    makes stored weights those to compute with, None for themselves.
    Source: arXiv:2104.14294 section 3.1; numbers of arXiv:2304.07193 appendix B.
    """

    prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    dtype: jnp.dtype = jnp.float32
    gather: Callable | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[... D] features -> [... K] logits in the compute dtype."""
        if self.layers < 1:
            raise errors.InputError(
                f"A head of {self.layers} layers; it needs 1 or more."
            )
        given = (self.dtype, self.gather)
        for i in range(self.layers):
            last = i == self.layers - 1
            width = self.bottleneck if last else self.hidden
            x = layers.dense(width, True, *given, f"mlp_{i}")(x)
            x = x if last else layers.gelu(x)
        prototypes = Prototypes(self.prototypes, *given, name="last_layer")
        return prototypes(normalize(x))
