"""Heads on frozen features: classification, depth and segmentation, as released.

Feature maps are [B h w D] with the channels last. A layer is a pair of its patch map
and its cls token [B D]; `layers_of` makes them from `ViT.intermediate`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors
from dinov2_jax.models import vit

Layer = tuple[jax.Array, jax.Array]

DEPTH_BLOCKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
"""Blocks of a released backbone -> those that its depth heads over four see, from 0.

They are taken without the final norm; segmentation heads see the last blocks with it.
"""


def layers_of(found: Sequence[vit.Features], grid: tuple[int, int]) -> list[Layer]:
    """(patch map [B h w D], cls [B D]) of each block."""
    return [(f.patches.reshape(len(f.cls), *grid, -1), f.cls) for f in found]


def linear_input(layers: Sequence[Layer], mean_patch: bool = True) -> jax.Array:
    """What a linear classifier sees: cls of each layer, then the last mean patch.

    Args:
        layers: the last n, in order of depth.
        mean_patch: append the mean patch token of the last layer.
    Returns: [B (n+1)*D], or [B n*D] without it.
    Source: the reference's `create_linear_input`.
    """
    parts = [cls for _, cls in layers]
    if mean_patch:
        parts.append(layers[-1][0].mean(axis=(1, 2)))
    return jnp.concatenate(parts, axis=-1)


def bilinear_weights(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """[n_out n_in] float64 weights of PyTorch's bilinear resize along one axis."""
    out = np.arange(n_out)
    if align_corners:
        at = out * ((n_in - 1) / max(n_out - 1, 1))
    else:
        at = np.maximum((out + 0.5) * (n_in / n_out) - 0.5, 0)
    low = np.minimum(np.floor(at).astype(int), n_in - 1)
    high, share = np.minimum(low + 1, n_in - 1), at - low
    weights = np.zeros((n_out, n_in))
    np.add.at(weights, (out, low), 1 - share)
    np.add.at(weights, (out, high), share)
    return weights


def resize(
    x: jax.Array, size: tuple[int, int], align_corners: bool = False
) -> jax.Array:
    """A feature map [B h w C] at another size, bilinear as PyTorch does it."""
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (
        jnp.asarray(bilinear_weights(n, m, align_corners), jnp.float32)
        for n, m in zip(x.shape[1:3], size)
    )
    high = jax.lax.Precision.HIGHEST
    x = jnp.einsum("Hh,bhwc->bHwc", rows, x, precision=high)
    return jnp.einsum("Ww,bhwc->bhWc", columns, x, precision=high)


class LinearClassifier(nn.Module):
    """Logits [B classes] of `linear_input`.

    Source: arXiv:2304.07193 section 7.1.
    """

    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.classes, name="linear")(x)


class LinearDepth(nn.Module):
    """Depth from bins: a 1x1 convolution of patches with their cls token.

    Fields: `bins` between `min_depth` and `max_depth`, metres; `upsample` of the map.
    Source: arXiv:2304.07193 section 7.4; the reference's depth `BNHead`.
    """

    bins: int = 256
    min_depth: float = 1e-3
    max_depth: float = 10.0
    upsample: int = 4

    @nn.compact
    def __call__(self, layers: Sequence[Layer]) -> jax.Array:
        """[B H W] metres, H and W `upsample` times the map's."""
        height, width = (n * self.upsample for n in layers[0][0].shape[1:3])
        maps = []
        for patches, cls in layers:
            cls = jnp.broadcast_to(cls[:, None, None], patches.shape)
            both = jnp.concatenate([patches, cls], axis=-1)
            maps.append(resize(both, (height, width)))
        x = nn.Conv(self.bins, (1, 1), name="conv_depth")(jnp.concatenate(maps, -1))
        shares = nn.relu(x) + 0.1
        shares = shares / shares.sum(-1, keepdims=True)
        return shares @ jnp.linspace(self.min_depth, self.max_depth, self.bins)


class Enlarge(nn.Module):
    """A transposed convolution whose stride is its kernel: no two outputs overlap."""

    features: int
    times: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, (b, h, w, c) = self.times, x.shape
        init = nn.initializers.lecun_normal(in_axis=2, out_axis=3)
        kernel = self.param("kernel", init, (n, n, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = jnp.einsum("bhwc,pqco->bhpwqo", x, kernel).reshape(b, h * n, w * n, -1)
        return x + bias


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, around an identity."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for name in ("conv1", "conv2"):
            y = nn.Conv(x.shape[-1], (3, 3), use_bias=False, name=name)(nn.relu(y))
        return x + y


class Fusion(nn.Module):
    """A coarser map joined with a finer one, and enlarged twice."""

    @nn.compact
    def __call__(self, x: jax.Array, finer: jax.Array | None = None) -> jax.Array:
        if finer is not None:
            finer = resize(finer, x.shape[1:3])
            x = x + ResidualUnit(name="res_conv_unit1")(finer)
        x = ResidualUnit(name="res_conv_unit2")(x)
        size = (2 * x.shape[1], 2 * x.shape[2])
        return nn.Conv(x.shape[-1], (1, 1), name="project")(resize(x, size, True))


class DPTDepth(nn.Module):
    """Depth by a dense prediction transformer's decoder over four blocks.

    Fields: `widths` of the four maps, coarse to fine in depth of block; `channels` of
    the decoder; `min_depth` metres.
    Source: arXiv:2103.13413; the reference's `DPTHead` with projected readout.
    """

    widths: tuple[int, int, int, int]
    channels: int = 256
    min_depth: float = 1e-3

    @nn.compact
    def __call__(self, layers: Sequence[Layer]) -> jax.Array:
        """[B H W] metres, H and W 16 times the map's (but for an odd coarsest map)."""
        if len(layers) != len(self.widths):
            raise errors.InputError(
                f"{len(layers)} layers for a head over {len(self.widths)}; give as many."
            )
        maps = [self._map(i, *layer) for i, layer in enumerate(layers)]
        x = Fusion(name="fusion_blocks_0")(maps[-1])
        for i, finer in enumerate(maps[-2::-1], 1):
            x = Fusion(name=f"fusion_blocks_{i}")(x, finer)
        x = nn.relu(nn.Conv(self.channels, (3, 3), name="project")(x))
        x = nn.Conv(self.channels // 2, (3, 3), name="depth_0")(x)
        x = resize(x, (2 * x.shape[1], 2 * x.shape[2]), True)
        x = nn.relu(nn.Conv(32, (3, 3), name="depth_2")(x))
        return nn.relu(nn.Conv(1, (1, 1), name="depth_4")(x))[..., 0] + self.min_depth

    def _map(self, i: int, patches: jax.Array, cls: jax.Array) -> jax.Array:
        """The map of one block: cls mixed in, projected, brought to its scale."""
        cls = jnp.broadcast_to(cls[:, None, None], patches.shape)
        x = jnp.concatenate([patches, cls], axis=-1)
        x = nn.Dense(patches.shape[-1], name=f"readout_{i}")(x)
        x = nn.gelu(x, approximate=False)
        x = nn.Conv(self.widths[i], (1, 1), name=f"projects_{i}")(x)
        if i in (0, 1):
            x = Enlarge(self.widths[i], (4, 2)[i], name=f"resize_{i}")(x)
        elif i == 3:
            x = nn.Conv(self.widths[i], (3, 3), 2, padding=1, name="resize_3")(x)
        return nn.Conv(self.channels, (3, 3), use_bias=False, name=f"convs_{i}")(x)


class LinearSegmentation(nn.Module):
    """Logits by batch norm and a 1x1 convolution over one or several blocks.

    Source: arXiv:2304.07193 section 7.4; the reference's segmentation `BNHead`.
    Differs: in training the running variance is the batch's own, where PyTorch
    multiplies it by n / (n - 1).
    """

    classes: int

    @nn.compact
    def __call__(self, layers: Sequence[Layer], train: bool = False) -> jax.Array:
        """[B h w classes]; the maps are brought to the first one's size."""
        size = layers[0][0].shape[1:3]
        x = jnp.concatenate([resize(patches, size) for patches, _ in layers], axis=-1)
        # PyTorch's momentum of 0.1 is the share of the new batch.
        norm = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name="bn")
        return nn.Conv(self.classes, (1, 1), name="conv_seg")(norm(x))
