"""What a file holds that is no DINOv2 backbone, told from the names of its tensors."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Look:
    """The names by which one kind of file is known."""

    kind: str  # what the file is, as the end of "It looks like ..."
    has: tuple[str, ...]  # patterns after the start or a dot; each fits some name
    lacks: tuple[str, ...] = ()  # patterns of which none fits any name


MODELS = (
    Look(
        "LoRA adapters that are not merged with a backbone (see merge_and_unload of peft)",
        (r"lora_[AB]\.|lora_(down|up)\.|lora_[ab]$",),
    ),
    Look(
        "one process's shards of an FSDP run; the same run's eval/*/"
        "teacher_checkpoint.pth is whole",
        (r"_?flat_param(_\d+)?$",),
    ),
    Look(
        "SAM's image encoder or ViTDet, whose attention has relative positions",
        (r"rel_pos_h$",),
    ),
    Look("SAM", (r"(mask_decoder|prompt_encoder)\.",)),
    Look(
        "a Swin Transformer",
        (r"(layers|features)\.\d+\.(blocks\.)?\d+\.(attn|attention)\.",),
    ),
    Look(
        "a DINOv3 backbone, which has rotary positions in place of a position table",
        (r"storage_tokens$|rope_embed\.|blocks\.\d+\.attn\.qkv\.bias_mask$",),
    ),
    Look(
        "DINOv3 in timm's form, which has rotary positions in place of a position table",
        (r"blocks\.\d+\.gamma_1$", r"reg_token$", r"cls_token$"),
        (r"pos_embed$",),
    ),
    Look(
        "DINOv3 in transformers' form, which has rotary positions in place of a "
        "position table",
        (
            r"layer\.\d+\.attention\.[qk]_proj\.weight$",
            r"embeddings\.patch_embeddings\.weight$",
        ),
    ),
    Look("SigLIP", (r"attn_pool\.|logit_bias$|head\.probe$",)),
    Look(
        "CLIP",
        (
            r"(class|token)_embedding(\.weight)?$|pre_layrnorm\.|norm_pre\.weight$|"
            + r"transformer\.resblocks\.|attnpool\.|text_projection(\.weight)?$",
        ),
    ),
    Look(
        "the vision tower of CLIP or SigLIP in transformers' form",
        (r"embeddings\.patch_embedding\.weight$",),
    ),
    Look(
        "BEiT or data2vec, whose attention has relative positions",
        (r"(relative_position_bias.*|rel_pos_bias\..*|lambda_1)$",),
    ),
    Look(
        "EVA",
        (
            r"blocks\.\d+\.(attn\.(q_bias|q_proj\.weight|inner_attn_ln)|mlp\.w1\.weight)",
        ),
    ),
    Look("BEiT or EVA", (r"blocks\.\d+\.gamma_1$",)),
    Look(
        "MAE with its decoder",
        (r"decoder_(embed|blocks|pred|pos_embed)\b|decoder\.decoder_(layers|pred)\.",),
    ),
    Look("a distilled DeiT", (r"(dist_token|distillation_token)$",)),
    Look(
        "ConvNeXt",
        (
            r"(conv_dw|dwconv)\.weight$|layer_scale_parameter$|"
            + r"features(\.\d+)+\.layer_scale$",
        ),
        (r"conv_stem\.",),
    ),
    Look(
        "a ResNet",
        (r"layer1\.0\.conv1\.weight$|embedder\.embedder\.convolution\.",),
    ),
    Look(
        "a ViT in the form of mmpretrain or mmsegmentation",
        (r"layers\.\d+\.ffn\.layers\.",),
    ),
    Look(
        "torchvision's ViT",
        (r"encoder\.layers\.encoder_layer_\d+\.",),
    ),
    Look(
        "I-JEPA in transformers' form, which has no cls token",
        (r"layernorm_before\.", r"position_embeddings$"),
        (r"cls_token$",),
    ),
    Look(
        "a ViT without a cls token, such as I-JEPA's, V-JEPA's or Hiera's",
        (r"blocks\.\d+\.", r"pos_embed$|patch_embed\."),
        (r"cls_token$",),
    ),
    Look(
        "a ViT in transformers' form (ViTModel), such as a supervised one, MAE's encoder "
        "or a copy of DINO v1; of DINO v1 and iBOT take the authors' own .pth",
        (r"layernorm_before\.",),
    ),
)
"""Models that are taken for DINOv2, in the order of asking."""

PARTS = (
    Look(
        "a linear, segmentation or depth head, which goes on a backbone",
        (r"(decode_head|classifiers_dict)\.|^(linear_head\.)?(weight|bias)$",),
    ),
    Look(
        "a DINO projection head without its backbone",
        (r"last_layer\.(weight|parametrizations)",),
    ),
    Look(
        "a convolutional network",
        (r"conv1\.weight$|conv_stem\.|running_mean$",),
    ),
    Look("an optimizer's state", (r"param_groups$|exp_avg(_sq)?$|optimizer\.",)),
)
"""What else a file without a backbone may hold."""


def model(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Which other model these are the tensors of, if it is one that is known."""
    kind = _first(MODELS, tensors)
    if kind is None and _positions_without_cls(tensors):
        return (
            "DeiT-3 or another ViT with LayerScale whose position table has no entry "
            "for the cls token"
        )
    return kind


def anything(names: Iterable[str]) -> str | None:
    """What a file with these names is, if it is known: another model or a part of one."""
    return _first(MODELS + PARTS, names)


def _first(looks: tuple[Look, ...], names: Iterable[str]) -> str | None:
    """The kind of the first entry that fits."""
    names = list(names)

    def some(pattern: str) -> bool:
        compiled = re.compile(rf"(^|\.)({pattern})")
        return any(compiled.search(name) for name in names)

    for look in looks:
        if all(map(some, look.has)) and not any(map(some, look.lacks)):
            return look.kind
    return None


def _positions_without_cls(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the position table is a bare square grid in a model without registers."""
    if {"reg_token", "register_tokens"} & set(tensors) or "cls_token" not in tensors:
        return False
    shape = np.shape(tensors.get("pos_embed", ()))
    if len(shape) != 3 or "blocks.0.ls1.gamma" not in tensors:
        return False
    return shape[1] > 1 and math.isqrt(shape[1]) ** 2 == shape[1]
