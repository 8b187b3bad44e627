"""Floating point operations of a training step by formula, and peaks of devices.

A multiply-add counts as two. Counted are the products of matrices, which are what a
matrix unit runs: patch embedding, linear layers, attention, heads with prototypes. Not
counted: norms, softmax, activations, residuals, the resize of position tables, losses
with KoLeo and Sinkhorn, normalisation of prototypes, optimiser and EMA; and what a
fused attention computes again for itself in its backward pass.
"""

import dataclasses
import itertools

from dinov2_jax import errors
from dinov2_jax.models import dino, heads, layers, vit

Stacks = tuple[tuple[int, int], ...]
"""((rows, tokens), ...) over all groups, one entry a resolution."""

PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989.5e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
}
"""How a device names its kind, up to a space -> dense bfloat16 operations a second.

Source: cloud.google.com/tpu/docs, "Peak compute per chip (bf16)" of each version (a
TPU7x chip shows itself as two devices); NVIDIA's data sheets, halved where they count
with sparsity.
"""


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of a whole step, over all devices.

    Fields: `backbone` and `heads` of student and teacher together, the student's three
    times (forward, and both gradients of every product); `saved` by stochastic depth
    on a subset of rows; `remat` computed a second time in the backward pass.
    """

    backbone: int
    heads: int
    saved: int
    remat: int

    @property
    def nominal(self) -> int:
        """Operations of the model, whatever an implementation saves or repeats."""
        return self.backbone + self.heads

    @property
    def executed(self) -> int:
        """Operations of the model without the rows that stochastic depth drops."""
        return self.nominal - self.saved


def peak(kind: str) -> float | None:
    """Dense bfloat16 operations a second of one whole device, None where not known.

    Args:
        kind: `jax.Device.device_kind`.
    """
    if " MIG " in kind:  # a slice of a GPU
        return None
    hits = [name for name in PEAKS if f"{kind} ".startswith((f"{name} ", f"{name}-"))]
    return PEAKS[max(hits, key=len)] if hits else None


def step(
    model: dino.DINO,
    *,
    batch: int,
    global_size: int,
    global_number: int,
    local_size: int,
    local_number: int,
    masked: int,
    groups: int = 1,
    drop_path: float | None = None,
    remat: str | None = None,
) -> Flops:
    """Operations of one training step.

    Args:
        model: backbone and heads.
        batch: B, images of the step on all devices.
        global_size, local_size: pixels, multiples of the patch.
        global_number, local_number: views of an image.
        masked: G * M, patches that the mask buffers of all groups hold, padding too.
        groups: G; stochastic depth rounds its subset down in each of them.
        drop_path: rate in training, None for the model's own.
        remat: one of `vit.POLICIES`, None for the model's own.
    Raises: ValueError if the groups do not divide the batch.
    """
    if batch % groups:
        raise errors.InputError(
            f"A batch of {batch} does not divide into {groups} groups."
        )
    net, views = model.backbone, global_number + local_number
    drop = net.drop_path if drop_path is None else drop_path
    remat = net.remat if remat is None else remat
    sizes = ((global_number, global_size), (local_number, local_size))
    stacks = tuple((batch * n, tokens(net, size)) for n, size in sizes if n)
    kept = _kept(stacks, groups, drop) if drop and net.uniform_drop else stacks
    seen = stacks[:1] if global_number else ()
    embedding = _embedding(net, stacks)
    # The student has no gradient with respect to pixels.
    student = 2 * embedding + 3 * net.depth * block(net, stacks)
    teacher = _embedding(net, seen) + net.depth * block(net, seen)
    patch_head = model.dino_head if model.ibot_head is None else model.ibot_head
    projected = (3 * views + global_number) * batch * head(model.dino_head, net.width)
    projected += (3 + 1) * masked * head(patch_head, net.width)
    return Flops(
        backbone=student + teacher,
        heads=projected,
        saved=3 * net.depth * (block(net, stacks) - block(net, kept)),
        remat=net.depth * _repeated(net, kept, remat),
    )


def tokens(net: vit.ViT, size: int) -> int:
    """Tokens of a square image of `size` pixels: cls, registers, patches."""
    return 1 + net.registers + (size // net.patch_size) ** 2


def forward(net: vit.ViT, size: int) -> int:
    """Operations of the backbone on one square image of `size` pixels."""
    stacks = ((1, tokens(net, size)),)
    return _embedding(net, stacks) + net.depth * block(net, stacks)


def block(net: vit.ViT, stacks: Stacks) -> int:
    """Operations of one block's forward pass over all rows."""
    linear = 2 * 4 * net.width**2 + _feed_forward(net)
    return linear * sum(n * t for n, t in stacks) + _attention(net, stacks)


def head(net: heads.Head, width: int) -> int:
    """Operations of a head's forward pass on one feature of that width."""
    widths = [width, *[net.hidden] * (net.layers - 1), net.bottleneck, net.prototypes]
    return 2 * sum(a * b for a, b in itertools.pairwise(widths))


def _feed_forward(net: vit.ViT) -> int:
    """Operations of a block's feed-forward on one token."""
    return 2 * net.width * sum(_feed_widths(net))


def _feed_widths(net: vit.ViT) -> tuple[int, int]:
    """Columns of the first product of the feed-forward and rows of the second."""
    hidden = int(net.width * net.mlp_ratio)
    if net.ffn == "mlp":
        return hidden, hidden
    half = layers.swiglu_hidden(hidden)
    return 2 * half, half


def _attention(net: vit.ViT, stacks: Stacks) -> int:
    """Operations of a block's scores and of its sums of values."""
    return 2 * 2 * net.width * sum(n * t * t for n, t in stacks)


def _embedding(net: vit.ViT, stacks: Stacks) -> int:
    """Operations that make tokens of pixels."""
    patches = sum(n * (t - 1 - net.registers) for n, t in stacks)
    return 2 * patches * net.in_channels * net.patch_size**2 * net.width


def _kept(stacks: Stacks, groups: int, drop: float) -> Stacks:
    """The rows that stochastic depth leaves, over all groups."""
    return tuple((groups * layers.subset_size(n // groups, drop), t) for n, t in stacks)


def _repeated(net: vit.ViT, stacks: Stacks, remat: str) -> int:
    """Operations of one block that its backward pass does once more.

    Raises: ValueError for a policy that does not exist.
    """
    if remat not in vit.POLICIES:
        raise errors.InputError(
            f"{remat=} is unknown; choose one of {', '.join(vit.POLICIES)}."
        )
    if remat == "none":
        return 0
    if remat == "dots":  # linear layers are kept; scores and values have batch axes
        return _attention(net, stacks)
    again = block(net, stacks)
    if net.layerscale is None:  # only its factor's gradient needs the last product
        last = 2 * net.width * _feed_widths(net)[1]
        again -= last * sum(n * t for n, t in stacks)
    return again
