"""Transformer block over packed views: attention, feed-forward, stochastic depth.

Views of several resolutions travel as one array [G S D]: group after group, and in a
group one stack of rows after the other. A layout says how S splits:
((rows, tokens), ...), one entry a resolution, rows = images in the group times views.
Linear layers see all S tokens at once; attention runs stack by stack.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Layout = tuple[tuple[int, int], ...]

Gather = Callable[[jax.Array, int | None], jax.Array]
"""(weight, its sharded axis from the end or None) -> the weight to compute with.

It may be wider than the compute dtype: then its gradient is as wide.
"""

kernel_init = nn.initializers.normal(0.02)


@jax.custom_vjp
def wide_dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[... I] times a kernel [I O] of wider type, in the type of x -> [... O].

    The kernel's gradient is summed, over images and over devices, in its own type.
    """
    return jnp.dot(x, kernel.astype(x.dtype))


def _wide_dot_backward(kept: tuple, grad: jax.Array) -> tuple:
    """Gradients of both arguments; the kernel's is never rounded to the type of x."""
    x, kernel = kept
    back = jnp.dot(grad, kernel.astype(x.dtype).T)
    wide = jnp.einsum("...i,...o->io", x, grad, preferred_element_type=kernel.dtype)
    return back, wide


wide_dot.defvjp(
    lambda x, kernel: (wide_dot(x, kernel), (x, kernel)), _wide_dot_backward
)


def dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[... I] times [I O] -> [... O] in the type of x."""
    return jnp.dot(x, kernel) if kernel.dtype == x.dtype else wide_dot(x, kernel)


@jax.custom_vjp
def wide_shift(x: jax.Array, bias: jax.Array) -> jax.Array:
    """[... O] plus a bias [O] of wider type, in the type of x, as in `wide_dot`."""
    return x + bias.astype(x.dtype)


wide_shift.defvjp(
    lambda x, bias: (wide_shift(x, bias), bias),
    lambda bias, grad: (
        grad,
        grad.sum(tuple(range(grad.ndim - 1)), dtype=bias.dtype),
    ),
)


def shift(x: jax.Array, bias: jax.Array) -> jax.Array:
    """[... O] plus [O] -> [... O] in the type of x."""
    return x + bias if bias.dtype == x.dtype else wide_shift(x, bias)


def dense(
    size: int,
    bias: bool,
    dtype: jnp.dtype,
    gather: Gather | None,
    name: str,
    *,
    axis: int | None = -2,
    **options,
) -> nn.Dense:
    """A linear layer that computes with gathered weights.

    Args:
        size: O, of the output.
        bias: whether there is one.
        dtype: of the computation.
        gather: None for the stored weights themselves.
        name: of the layer in its module.
        axis: along which the kernel is sharded, from the end.
        options: further ones of `nn.Dense`.
    """

    use = gather or (lambda weight, axis: weight.astype(dtype))

    # Both weights pass as one to `product`: nn.Dense itself would add a wide bias wide.
    def promoted(x, kernel, bias, dtype):
        bias = None if bias is None else use(bias, None)
        return x.astype(dtype), (use(kernel, axis), bias), None

    def product(x, weights, *_, **__):
        kernel, bias = weights
        y = dot(x, kernel)
        return y if bias is None else shift(y, bias)

    options = {"kernel_init": kernel_init} | options
    return nn.Dense(
        size,
        bias,
        dtype,
        name=name,
        promote_dtype=promoted,
        dot_general=product,
        **options,
    )


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU: x times the normal distribution function.

    Only x is kept for the backward pass. `jax.nn.gelu` goes through erfc, which costs
    an exponential and a division more, and keeps four arrays of this width.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def pack(stacks: Sequence[jax.Array]) -> jax.Array:
    """Stacks [G rows tokens D] as one array [G S D]."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in stacks], 1)


def unpack(x: jax.Array, layout: Layout) -> list[jax.Array]:
    """The stacks [G rows tokens D] that `pack` has joined."""
    stacks, start = [], 0
    for rows, tokens in layout:
        part = jax.lax.slice_in_dim(x, start, start + rows * tokens, axis=1)
        stacks.append(part.reshape(x.shape[0], rows, tokens, x.shape[-1]))
        start += rows * tokens
    return stacks


def subset_size(rows: int, rate: float) -> int:
    """Rows that stochastic depth keeps of `rows`: floor, and at least one."""
    return max(int(rows * (1 - rate)), 1)


def subset_residual(
    x: jax.Array,
    layout: Layout,
    kept: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    branch: Callable[[jax.Array, Layout], jax.Array],
) -> jax.Array:
    """Add a residual branch that is computed for some rows only.

    Args:
        x: [G S D] packed tokens.
        layout: how S splits into stacks.
        kept: for each stack, [G s] row numbers, no row twice.
        weights: for each stack, [G s] factor of the branch's output; b / s in the
            reference's batch-subset form.
        branch: ([G S' D], its layout) -> [G S' D].
    Returns: [G S D].
    Source: the reference's `drop_add_residual_stochastic_depth_list`.
    """
    stacks = unpack(x, layout)
    sizes = tuple((k.shape[1], tokens) for k, (_, tokens) in zip(kept, layout))
    taken = [
        jnp.take_along_axis(s, k[..., None, None], 1) for s, k in zip(stacks, kept)
    ]
    added = unpack(branch(pack(taken), sizes), sizes)
    put = jax.vmap(lambda rows, k, y: rows.at[k].add(y, unique_indices=True))
    return pack(
        [
            put(stack, k, y * w[..., None, None].astype(y.dtype))
            for stack, k, w, y in zip(stacks, kept, weights, added)
        ]
    )


class LayerScale(nn.Module):
    """A learned factor per channel. Source: arXiv:2103.17239 section 2."""

    init: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[... D] -> [... D]."""
        gamma = self.param("gamma", nn.initializers.constant(self.init), x.shape[-1:])
        return x * gamma.astype(x.dtype)


class Mlp(nn.Module):
    """Two linear layers with exact (erf) GELU between them."""

    hidden: int
    bias: bool = True
    dtype: jnp.dtype = jnp.float32
    gather: Gather | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[... D] -> [... D]."""
        given = (self.bias, self.dtype, self.gather)
        h = gelu(dense(self.hidden, *given, "fc1")(x))
        return dense(x.shape[-1], *given, "fc2")(h)


def swiglu_hidden(hidden: int) -> int:
    """Width of each SwiGLU half: two thirds of `hidden`, rounded up to 8s."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class SwiGLU(nn.Module):
    """Gated feed-forward: silu(a) * b with [a, b] = w12 x. Source: arXiv:2002.05202."""

    hidden: int
    bias: bool = True
    dtype: jnp.dtype = jnp.float32
    gather: Gather | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[... D] -> [... D]."""
        given = (self.bias, self.dtype, self.gather)
        wide = dense(2 * swiglu_hidden(self.hidden), *given, "w12")(x)
        gate, value = jnp.split(wide, 2, -1)
        return dense(x.shape[-1], *given, "w3")(nn.silu(gate) * value)


class Attention(nn.Module):
    """Multi-head self-attention inside each row of each stack."""

    heads: int
    qkv_bias: bool = True
    proj_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    gather: Gather | None = None
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[G S D] packed tokens -> [G S D]; softmax in float32."""
        width, given = x.shape[-1], (self.dtype, self.gather)
        qkv = dense(3 * width, self.qkv_bias, *given, "qkv")(x)
        mixed = []
        for stack in unpack(qkv, layout):
            shape = (-1, stack.shape[2], 3, self.heads, width // self.heads)
            q, k, v = jnp.unstack(stack.reshape(shape), axis=2)
            out = jax.nn.dot_product_attention(q, k, v, implementation=self.attention)
            mixed.append(out.reshape(*stack.shape[:3], width))
        return dense(width, self.proj_bias, *given, "proj")(pack(mixed))


FEED_FORWARD = {"mlp": Mlp, "swiglu": SwiGLU}

ATTENTION = ("xla", "cudnn")
"""Who computes attention; cudnn on NVIDIA GPUs, in 16 bits."""

ENTRY = "block_input"
"""The name of a block's input, for policies that move it to the host."""


class Block(nn.Module):
    """Pre-norm transformer block; also writes its output to a slot of `taps`.

    Fields: `layout` of the packed tokens; `heads`; `hidden` width of the feed-forward
    before SwiGLU's own rounding; `drop` the largest rate of stochastic depth of the
    whole stack of blocks (it fixes the static shapes), 0 for none; `gather` makes
    stored weights those to compute with; `attention` one of ATTENTION.
    """

    layout: Layout
    heads: int
    hidden: int
    ffn: str = "mlp"
    layerscale: float | None = 1e-5
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    drop: float = 0.0
    uniform_drop: bool = True
    dtype: jnp.dtype = jnp.float32
    gather: Gather | None = None
    attention: str = "xla"

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array], layer: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """(x [G S D], taps [n G S D]), (slot, rate) -> the same carry, one block on."""
        (x, taps), (slot, rate) = carry, layer
        x = checkpoint_name(x, ENTRY)
        norm1, norm2 = (
            nn.LayerNorm(1e-6, self.dtype, use_fast_variance=False, name=name)
            for name in ("norm1", "norm2")
        )
        given = (self.dtype, self.gather)
        attention = Attention(
            self.heads,
            self.qkv_bias,
            self.proj_bias,
            *given,
            self.attention,
            name="attn",
        )
        feed = FEED_FORWARD[self.ffn](self.hidden, self.ffn_bias, *given, name="mlp")
        x = self.residual(x, rate, "ls1", lambda y, layout: attention(norm1(y), layout))
        x = self.residual(x, rate, "ls2", lambda y, _: feed(norm2(y)))
        if taps.shape[0]:
            taps = taps.at[slot].set(x, mode="drop")
        return (x, taps), None

    def residual(self, x: jax.Array, rate: jax.Array, name: str, branch) -> jax.Array:
        """x plus the scaled branch, for all rows or for a fresh random subset."""

        def scaled(y: jax.Array, layout: Layout) -> jax.Array:
            y = branch(y, layout)
            if self.layerscale is None:
                return y
            return LayerScale(self.layerscale, name=name)(y)

        if not self.drop:
            return x + scaled(x, self.layout)
        keys = jax.random.split(self.make_rng("drop_path"), len(self.layout))
        drawn = [
            self.draw(key, x.shape[0], rows, rate)
            for key, (rows, _) in zip(keys, self.layout)
        ]
        kept, weights = zip(*drawn)
        return subset_residual(x, self.layout, kept, weights, scaled)

    def draw(
        self, key: jax.Array, groups: int, rows: int, rate: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Kept rows [G s] and their weights [G s] for one stack.

        With one rate for all blocks s is the reference's subset. With a rate that
        grows over depth the shapes stay static: s is that of the smallest rate, and
        rows beyond this block's own subset weigh 0.
        """
        order = jnp.argsort(jax.random.uniform(key, (groups, rows)), axis=1)
        if self.uniform_drop:
            size = subset_size(rows, self.drop)
            return order[:, :size], jnp.full((groups, size), rows / size, jnp.float32)
        size = jnp.maximum(jnp.floor(rows * (1 - rate)), 1)
        weights = jnp.where(jnp.arange(rows) < size, rows / size, 0.0)
        return order, jnp.broadcast_to(weights, order.shape)
