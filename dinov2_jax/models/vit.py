"""Vision Transformer of DINOv2, over one batch of images or several stacks of views."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from dinov2_jax import errors
from dinov2_jax.models import inputs, layers, posembed

VARIANTS = {
    "Ti": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "g": {"width": 1536, "depth": 40, "heads": 24, "ffn": "swiglu"},
}
"""Size letter -> arguments of `ViT`; g is wider in heads and gated, as released."""

POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[layers.ENTRY],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""What a block keeps for its backward pass: everything, its input, its products, or
its input in the host's memory."""


def variant(name: str) -> dict[str, int | str]:
    """Arguments of `ViT` for a name such as `S/14`.

    Raises: ValueError if the name is no size letter, slash, patch size.
    """
    size, _, patch = name.partition("/")
    if size not in VARIANTS or not patch.isdigit() or int(patch) < 1:
        raise errors.InputError(
            f"Variant {name!r} is unknown; it needs the form SIZE/PATCH with SIZE one "
            f"of {', '.join(VARIANTS)}, for example S/14."
        )
    return VARIANTS[size] | {"patch_size": int(patch)}


@struct.dataclass
class Features:
    """Tokens of one stack of views after the final norm."""

    cls: jax.Array  # [B V D]
    registers: jax.Array  # [B V R D]
    patches: jax.Array  # [B V N D], row by row
    prenorm: jax.Array  # [B V T D], all tokens before the final norm


def _uniform(bound: float) -> Callable:
    """PyTorch's default initialisation of a convolution of that fan-in bound."""
    return lambda key, shape, dtype: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


class ViT(nn.Module):
    """DINOv2's backbone; parameters of all blocks are stacked along a layer axis.

    Fields: `image_size` pixels of the position table, its side or (rows, columns);
    `mlp_ratio` hidden width over width; `layerscale` initial value, None for no LayerScale;
    `antialias` and `offset` of the position resize; `drop_path` rate, the same for all
    blocks or, with `uniform_drop` off, growing linearly from 0; `remat` one of
    POLICIES; `unroll` blocks per scan iteration; `gather` makes stored weights those
    to compute with, None for themselves; `attention` one of `layers.ATTENTION`.

    Source: arXiv:2304.07193 section 4, arXiv:2309.16588 (registers).
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 14
    image_size: int | tuple[int, int] = 518
    in_channels: int = 3
    registers: int = 0
    ffn: str = "mlp"
    mlp_ratio: float = 4.0
    layerscale: float | None = 1e-5
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    antialias: bool = False
    offset: float = 0.1
    drop_path: float = 0.0
    uniform_drop: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    unroll: int = 1
    gather: layers.Gather | None = None
    attention: str = "xla"

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide, by name, before anything is traced."""
        super().__post_init__()
        for whole, part in (("width", "heads"), ("image_size", "patch_size")):
            sizes = np.atleast_1d(getattr(self, whole))
            if (sizes % getattr(self, part)).any():
                raise errors.InputError(
                    f"{whole}={getattr(self, whole)} is not a multiple of "
                    f"{part}={getattr(self, part)}; change one of them."
                )
        choices = {
            "ffn": layers.FEED_FORWARD,
            "remat": POLICIES,
            "attention": layers.ATTENTION,
        }
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise errors.InputError(
                    f"{field}={getattr(self, field)!r} is unknown; "
                    f"choose one of {', '.join(known)}."
                )

    @property
    def table_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of the position table."""
        rows, columns = np.broadcast_to(self.image_size, 2) // self.patch_size
        return int(rows), int(columns)

    @nn.compact
    def views(
        self,
        stacks: Sequence[jax.Array],
        masks: Sequence[jax.Array | None] | None = None,
        groups: int | None = None,
        train: bool = False,
        tap: Sequence[int] = (),
    ) -> tuple[list[Features], list[list[Features]]]:
        """Features of several stacks of views in one pass (sequence packing).

        Args:
            stacks: for each resolution [B V H W C] float images; B the same for all.
            masks: for each stack [B V N] bool, True where the patch is replaced by
                the mask token, or None.
            groups: number of groups G that B divides into; stochastic depth draws
                its subsets inside a group. None makes each image its own group.
            train: draw stochastic depth from the rng stream `drop_path`.
            tap: block numbers whose outputs are wanted too.
        Returns: one Features a stack; and for each tapped block one list of them.
        Raises: ValueError if images are not as `inputs.check` needs them, or groups
            do not divide B.
        Differs: the reference runs a custom attention kernel over the packed tokens;
            here linear layers are packed and attention runs per resolution.
        """
        for stack in stacks:
            inputs.check(stack, "B V H W C", self.patch_size, self.in_channels)
        batch = stacks[0].shape[0]
        groups = batch if groups is None else groups
        if batch % groups:
            raise errors.InputError(
                f"A batch of {batch} does not divide into {groups} groups."
            )
        masks = [None] * len(stacks) if masks is None else masks
        embedded = self._embed(stacks, masks)
        layout = tuple(
            (batch // groups * s.shape[1], t.shape[2]) for s, t in zip(stacks, embedded)
        )
        drop = self.drop_path if train else 0.0
        grouped = [t.reshape(groups, -1, *t.shape[2:]) for t in embedded]
        x, taps = self._blocks(layers.pack(grouped), layout, drop, tuple(tap))
        norm = nn.LayerNorm(1e-6, self.dtype, use_fast_variance=False, name="norm")

        def features(x: jax.Array) -> list[Features]:
            pairs = zip(
                layers.unpack(x, layout), layers.unpack(norm(x), layout), embedded
            )
            return [
                self._split(a.reshape(t.shape), b.reshape(t.shape)) for a, b, t in pairs
            ]

        return features(x), [features(t) for t in taps]

    def _blocks(
        self, x: jax.Array, layout: layers.Layout, drop: float, tap: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """Scan the blocks over [G S D]; also [n G S D], the outputs of tapped blocks."""
        block = layers.Block
        if self.remat != "none":
            block = nn.remat(block, prevent_cse=False, policy=POLICIES[self.remat])
        scan = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "drop_path": True},
            length=self.depth,
            unroll=self.unroll,
        )
        blocks = scan(
            layout=layout,
            heads=self.heads,
            hidden=int(self.width * self.mlp_ratio),
            ffn=self.ffn,
            layerscale=self.layerscale,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            ffn_bias=self.ffn_bias,
            drop=drop,
            uniform_drop=self.uniform_drop,
            dtype=self.dtype,
            gather=self.gather,
            attention=self.attention,
            name="blocks",
        )
        slots = np.full(self.depth, len(tap))  # one past the end: not kept
        slots[list(tap)] = np.arange(len(tap))
        rates = jnp.asarray(np.linspace(0, drop, self.depth), jnp.float32)
        taps = jnp.zeros((len(tap), *x.shape), x.dtype)
        return blocks((x, taps), (jnp.asarray(slots), rates))[0]

    def _embed(
        self, stacks: Sequence[jax.Array], masks: Sequence[jax.Array | None]
    ) -> list[jax.Array]:
        """Tokens [B V T D] of each stack: cls, registers, patches."""
        p, d, own = self.patch_size, self.width, self.table_grid
        normal = nn.initializers.normal
        cls = self.param("cls_token", normal(1e-6), (1, 1, d))
        table = self.param("pos_embed", normal(0.02), (1, 1 + own[0] * own[1], d))
        mask_token = self.param("mask_token", nn.initializers.zeros, (1, d))
        registers = jnp.zeros((1, 0, d))
        if self.registers:
            registers = self.param(
                "register_tokens", normal(1e-6), (1, self.registers, d)
            )
        bound = (self.in_channels * p * p) ** -0.5
        project = layers.dense(
            d,
            True,
            self.dtype,
            self.gather,
            "patch_embed",
            axis=None,
            kernel_init=_uniform(bound),
            bias_init=_uniform(bound),
        )
        tokens = []
        for x, mask in zip(stacks, masks):
            rows, columns = (n // p for n in x.shape[-3:-1])
            patches = project(inputs.patches(x, p))  # [B V N D]
            if mask is not None:
                token = mask_token.astype(patches.dtype)
                patches = jnp.where(mask[..., None], token, patches)
            position = posembed.resize(
                table, (rows, columns), self.antialias, self.offset, own
            )
            lead = x.shape[:2]
            first = jnp.broadcast_to(cls + position[:, :1], (*lead, 1, d))
            extra = jnp.broadcast_to(registers, (*lead, self.registers, d))
            patches = patches + position[:, 1:].astype(patches.dtype)
            parts = [first.astype(self.dtype), extra.astype(self.dtype), patches]
            tokens.append(jnp.concatenate(parts, axis=2))
        return tokens

    def _split(self, prenorm: jax.Array, normed: jax.Array) -> Features:
        """Slice [B V T D] tokens into cls, registers and patches."""
        first = 1 + self.registers
        return Features(
            normed[:, :, 0], normed[:, :, 1:first], normed[:, :, first:], prenorm
        )

    def __call__(self, images: jax.Array, masks: jax.Array | None = None) -> Features:
        """Features of plain images.

        Args:
            images: [B H W C] float, normalised; H and W multiples of the patch size.
            masks: [B N] bool, True where the mask token stands in.
        Returns: Features without the V axis: cls [B D], patches [B N D], ...
        Raises: ValueError if images are not as `inputs.check` needs them.
        """
        inputs.check(images, "B H W C", self.patch_size, self.in_channels)
        masks = None if masks is None else [masks[:, None]]
        found, _ = self.views([images[:, None]], masks)
        return jax.tree.map(lambda a: a[:, 0], found[0])

    def intermediate(
        self, images: jax.Array, blocks: int | Sequence[int] = 1, norm: bool = True
    ) -> list[Features]:
        """Outputs of several blocks, in order of depth.

        Args:
            images: [B H W C] float, normalised.
            blocks: the last n blocks, or block numbers from 0.
            norm: pass each through the final norm, as the reference does by default.
        Returns: one Features a block, without the V axis; registers apart from
            patches, so `as_map(f.patches, grid)` is a plain feature map.
        Raises: ValueError if a block does not exist.
        Source: the reference's `get_intermediate_layers`.
        """
        if isinstance(blocks, int):
            blocks = range(self.depth - blocks, self.depth)
        numbers = sorted(set(blocks))
        if not numbers or numbers[0] < 0 or numbers[-1] >= self.depth:
            odd = [n for n in numbers if not 0 <= n < self.depth]
            raise errors.InputError(
                f"Of {len(numbers)} blocks asked for {len(odd)} do not exist; the model "
                f"has {self.depth} blocks, 0 to {self.depth - 1}."
            )
        inputs.check(images, "B H W C", self.patch_size, self.in_channels)
        _, taps = self.views([images[:, None]], tap=numbers)
        found = [jax.tree.map(lambda a: a[:, 0], tap[0]) for tap in taps]
        if norm:
            return found
        return [self._split_plain(f.prenorm) for f in found]

    def _split_plain(self, prenorm: jax.Array) -> Features:
        """Features of [B T D] tokens that no norm has touched."""
        x = prenorm[:, None]
        return jax.tree.map(lambda a: a[:, 0], self._split(x, x))


def as_map(patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """[B N D] patch tokens as a map [B rows columns D]."""
    return patches.reshape(patches.shape[0], *grid, patches.shape[-1])


def shapes(model: ViT) -> dict:
    """Shapes of a module's parameters; nothing is computed."""
    shape = (1, model.patch_size, model.patch_size, model.in_channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def build(name: str, **overrides) -> ViT:
    """The ViT of a variant such as `S/14`, with some arguments replaced."""
    known = {field.name for field in dataclasses.fields(ViT)}
    unknown = set(overrides) - known
    if unknown:
        raise errors.InputError(
            f"ViT has no argument {sorted(unknown)}; it has {sorted(known)}."
        )
    return ViT(**(variant(name) | overrides))
