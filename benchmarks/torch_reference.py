"""DINOv2's training step in PyTorch: what `step_vs_torch.py` measures against.

Networks, losses and parameter groups are those of the reference's own package
`dinov2==0.0.1.dev2`. Its `SSLMetaArch` runs on CUDA with xFormers and FSDP only, so the
step is restated here line by line for one process, with these changes, each at least
as fast: attention is `scaled_dot_product_attention` (the package's fallback
without xFormers is the slower plain softmax); global and local crops pass the student
one after the other instead of packed for xFormers (equal results, no copies); AdamW is
PyTorch's fused one, and the schedules' values arrive ready. On request it computes in
bfloat16 by autocast, and passes and losses are compiled as two graphs.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

try:
    import torch
    from dinov2.layers import DINOHead
    from dinov2.layers.attention import Attention
    from dinov2.layers.block import Block
    from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss
    from dinov2.models.vision_transformer import DinoVisionTransformer
    from dinov2.utils import param_groups
    from torch.nn import functional
except ImportError as error:
    raise ImportError(
        f"{error}. This benchmark runs the reference in PyTorch: install the extra "
        "`torch` (pip install 'dinov2_jax[torch]'), then "
        "pip install --no-deps dinov2==0.0.1.dev2."
    ) from error


class Batch(NamedTuple):
    """One batch as the reference collates it: rows are crop-major, images NCHW."""

    global_crops: torch.Tensor  # [U*B C H W]
    local_crops: torch.Tensor  # [(V-U)*B C h w]
    masks: torch.Tensor  # [U*B N] bool
    indices: torch.Tensor  # [M] of the masked patches among all of them
    weights: torch.Tensor  # [M] 1 / masked patches of its crop
    capacity: int  # size of the buffer of masked patches

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Batch":
        """From image-major arrays [B V H W C], masks [B U N] and the capacity."""

        def rows(x: np.ndarray) -> torch.Tensor:
            x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
            return torch.from_numpy(np.ascontiguousarray(x))

        crops = [
            rows(arrays[name]).permute(0, 3, 1, 2).contiguous()
            for name in ("global_crops", "local_crops")
        ]
        masks = rows(arrays["masks"])
        weights = (1 / masks.sum(-1, keepdim=True).clamp(min=1)).expand_as(masks)[masks]
        indices = masks.flatten().nonzero().flatten()
        return cls(*crops, masks, indices, weights, int(arrays["capacity"]))

    def to(self, device: str) -> "Batch":
        """The same on a device."""
        return Batch(*(x.to(device) for x in self[:-1]), self.capacity)


class FusedAttention(Attention):
    """The reference's attention through PyTorch's fused kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B T D] -> [B T D]."""
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, t, d))


class Peer:
    """Student, teacher, optimiser and one update of the reference."""

    def __init__(
        self,
        settings: Mapping,
        weights: Mapping[str, np.ndarray] | None = None,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        compiled: str = "",
    ):
        """Build both networks and give them the same weights.

        Args:
            settings: see `plain_settings` in `step_vs_torch.py`.
            weights: official names behind `backbone.` or `dino_head.`; None for those
                that the student draws.
            device: cpu or cuda.
            dtype: float32, or bfloat16 for autocast.
            compiled: a mode of `torch.compile`, "" for eager.
        """
        self.settings = settings
        with torch.device(device):
            self.student, self.teacher = self._networks(), self._networks()
        state = self.student.state_dict()
        if weights is not None:
            state = {name: torch.from_numpy(value) for name, value in weights.items()}
        self.student.load_state_dict(state)
        self.teacher.load_state_dict(state)
        self.teacher.requires_grad_(False).eval()
        self.student.train()
        given = settings["prototypes"], settings["student_temp"]
        self.dino_loss = DINOLoss(*given).to(device)
        self.ibot_loss = iBOTPatchLoss(*given).to(device)
        self.koleo_loss = KoLeoLoss()
        groups = []
        for part in self.student.values():
            groups += param_groups.fuse_params_groups(
                param_groups.get_params_groups_with_decay(
                    part, settings["layer_decay"], settings["patch_embed_factor"]
                )
            )
        self.optimizer = torch.optim.AdamW(groups, betas=settings["betas"], fused=True)
        low = dtype != "float32"
        self.precision = partial(
            torch.autocast, device, getattr(torch, dtype) if low else None, low
        )
        self.teach, self.losses = self._teach, self._losses
        if compiled:
            # Both resolutions get graphs of their own, not one of changing shape.
            compile_ = partial(torch.compile, dynamic=False, mode=compiled)
            self.teach, self.losses = compile_(self._teach), compile_(self._losses)

    def _networks(self) -> torch.nn.ModuleDict:
        """Backbone and the head that both losses share."""
        s = self.settings
        backbone = DinoVisionTransformer(
            img_size=s["global_size"],
            patch_size=s["patch_size"],
            embed_dim=s["width"],
            depth=s["depth"],
            num_heads=s["heads"],
            drop_path_rate=s["drop_path"],
            drop_path_uniform=True,
            init_values=s["layerscale"],
            ffn_layer=s["ffn"],
            block_fn=partial(Block, attn_class=FusedAttention),
            block_chunks=0,
        )
        head = DINOHead(
            s["width"],
            s["prototypes"],
            nlayers=s["layers"],
            hidden_dim=s["hidden"],
            bottleneck_dim=s["bottleneck"],
        )
        return torch.nn.ModuleDict({"backbone": backbone, "dino_head": head})

    def step(self, batch: Batch, now: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """One update with the schedules' values of this step; the losses before it."""
        for group in self.optimizer.param_groups:
            lr = now["last_layer_lr"] if group["is_last_layer"] else now["lr"]
            group["lr"] = lr * group["lr_multiplier"]
            group["weight_decay"] = now["weight_decay"] * group["wd_multiplier"]
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            targets = self.teach(batch, now["teacher_temp"])
            losses = self.losses(batch, *targets)
        losses["total"].backward()
        for part in self.student.values():
            torch.nn.utils.clip_grad_norm_(part.parameters(), self.settings["clip"])
        self.optimizer.step()
        with torch.no_grad():
            student = list(self.student.parameters())
            teacher = list(self.teacher.parameters())
            torch._foreach_mul_(teacher, 1 - now["ema_rate"])
            torch._foreach_add_(teacher, student, alpha=now["ema_rate"])
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def _teach(self, batch: Batch, temp: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Centred targets [U B K], its views swapped, and those of masked patches."""
        indices = batch.indices
        out = self.teacher["backbone"](batch.global_crops, is_training=True)
        first, second = out["x_norm_clstoken"].chunk(2)
        cls = torch.cat((second, first))  # so that a view meets the other's target
        patches = out["x_norm_patchtokens"].flatten(0, 1)
        buffer = patches.new_zeros(len(cls) + batch.capacity, patches.shape[-1])
        buffer[: len(cls)] = cls
        buffer[len(cls) : len(cls) + len(indices)] = patches[indices]
        logits = self.teacher["dino_head"](buffer)
        cls_logits = logits[: len(cls)]
        patch_logits = logits[len(cls) : len(cls) + len(indices)].unsqueeze(0)
        targets = self.dino_loss.softmax_center_teacher(cls_logits, temp)
        self.dino_loss.update_center(cls_logits)
        patch_targets = self.ibot_loss.softmax_center_teacher(patch_logits, temp)
        self.ibot_loss.update_center(patch_logits)
        return targets.unflatten(0, (2, -1)), patch_targets.squeeze(0)

    def _losses(
        self,
        batch: Batch,
        targets: torch.Tensor,
        patch_targets: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The four terms, and their sum with the reference's weights."""
        s, backbone = self.settings, self.student["backbone"]
        indices = batch.indices
        seen = backbone(batch.global_crops, masks=batch.masks, is_training=True)
        near = backbone(batch.local_crops, is_training=True)["x_norm_clstoken"]
        cls, patches = seen["x_norm_clstoken"], seen["x_norm_patchtokens"].flatten(0, 1)
        buffer = patches.new_zeros(batch.capacity, patches.shape[-1])
        buffer[: len(indices)] = patches[indices]
        sizes = [len(near), len(cls), len(buffer)]
        logits = self.student["dino_head"](torch.cat((near, cls, buffer))).split(sizes)
        local_views = len(near) // (len(cls) // 2)
        pairs = 2 + 2 * local_views
        local = self.dino_loss(logits[0].chunk(local_views), targets) / pairs
        both = self.dino_loss([logits[1]], [targets.flatten(0, 1)]) * 2 / pairs
        koleo = sum(self.koleo_loss(view) for view in cls.chunk(2))
        ibot = self.ibot_loss.forward_masked(
            logits[2][: len(indices)],
            patch_targets,
            student_masks_flat=batch.masks,
            n_masked_patches=len(indices),
            masks_weight=batch.weights,
        )
        total = (
            s["dino_weight"] * (local + both)
            + s["koleo_weight"] * koleo
            + s["ibot_weight"] * ibot
        )
        return {
            "dino_local": local,
            "dino_global": both,
            "koleo": koleo,
            "ibot": ibot,
            "total": total,
        }
