"""Backbone and heads over the views of a batch, as student and as teacher."""

import flax.linen as nn
import jax
from flax import struct

from dinov2_jax.models import heads, vit


@struct.dataclass
class Student:
    """What the losses read of the student."""

    cls_logits: jax.Array  # [B V K], global views first
    patch_logits: jax.Array  # [G M K'], at the masked patches
    cls: jax.Array  # [B U D], of the global views, before the head


@struct.dataclass
class Teacher:
    """What the targets are made of."""

    cls_logits: jax.Array  # [B U K]
    patch_logits: jax.Array  # [G M K'], at the patches that the student has masked
    cls: jax.Array  # [B U D], before the head


def masked_patches(patches: jax.Array, indices: jax.Array) -> jax.Array:
    """The patches at group-wise positions.

    Args:
        patches: [B U N D].
        indices: [G M] positions in a group's B/G * U * N patches.
    Returns: [G M D].
    """
    grouped = patches.reshape(indices.shape[0], -1, patches.shape[-1])
    return jax.numpy.take_along_axis(grouped, indices[..., None], axis=1)


class DINO(nn.Module):
    """One backbone with its heads; without `ibot_head` both losses share one head.

    With `packed` the views of both resolutions pass the linear layers together, else
    one resolution after the other, each with its own subsets of stochastic depth.

    Source: arXiv:2304.07193 section 4; packing: section 5.
    """

    backbone: vit.ViT
    dino_head: heads.Head
    ibot_head: heads.Head | None = None
    packed: bool = True

    def student(
        self,
        global_crops: jax.Array,
        local_crops: jax.Array,
        masks: jax.Array,
        indices: jax.Array,
        train: bool = True,
    ) -> Student:
        """Logits of all views, global ones masked.

        Args:
            global_crops: [B U H W C] float, normalised.
            local_crops: [B V-U h w C]; V-U may be 0.
            masks: [B U N] bool.
            indices: [G M] positions of the masked patches in each group.
            train: draw stochastic depth.
        """
        stacks = [(global_crops, masks)]
        if local_crops.shape[1]:
            stacks.append((local_crops, None))
        found = []
        for part in [stacks] if self.packed else [[stack] for stack in stacks]:
            views, hidden = zip(*part)
            found += self.backbone.views(views, hidden, indices.shape[0], train)[0]
        cls = jax.numpy.concatenate([f.cls for f in found], axis=1)
        patches = masked_patches(found[0].patches, indices)
        return Student(*self._logits(cls, patches), found[0].cls)

    def teacher(self, global_crops: jax.Array, indices: jax.Array) -> Teacher:
        """Logits of the unmasked global views [B U H W C] and of chosen patches."""
        found, _ = self.backbone.views([global_crops], groups=indices.shape[0])
        cls = found[0].cls
        patches = masked_patches(found[0].patches, indices)
        return Teacher(*self._logits(cls, patches), cls)

    def _logits(
        self, cls: jax.Array, patches: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[B V K] of cls tokens [B V D] and [G M K'] of patches [G M D].

        A shared head sees both in one call, so that its weights are gathered and
        their gradients summed over devices once.
        """
        if self.ibot_head is not None:
            return self.dino_head(cls), self.ibot_head(patches)
        groups, number, width = patches.shape
        rows = cls.reshape(groups, -1, width)
        logits = self.dino_head(jax.numpy.concatenate([patches, rows], axis=1))
        rest = logits[:, number:].reshape(*cls.shape[:2], -1)
        return rest, logits[:, :number]
