"""Other models' files, which are called by their names."""

import arrays
import numpy as np
import peers
import pytest

from dinov2_jax import zoo
from dinov2_jax.convert import check, export, huggingface, lookalikes, names, read, timm

TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
WINDOWS = {"depths": (1, 1), "embed_dim": 16, "num_heads": (1, 1)}
TIMM = {
    "vit_small_patch16_dinov3": (TINY, "DINOv3 in timm's form"),
    "vit_small_patch16_dinov3_qkvb": (TINY, "DINOv3 in timm's form"),
    "eva02_tiny_patch14_224": (TINY, "EVA"),
    "eva_giant_patch14_224": (TINY | {"mlp_ratio": 4}, "EVA"),
    "beit_base_patch16_224": (TINY, "BEiT"),
    "beitv2_base_patch16_224": (TINY, "BEiT"),
    "deit3_small_patch16_224": (TINY, "DeiT-3"),
    "deit_small_distilled_patch16_224": (TINY, "a distilled DeiT"),
    "vit_base_patch16_clip_224": (TINY, "CLIP"),
    "vit_base_patch16_siglip_224": (TINY, "SigLIP"),
    "samvit_base_patch16": (TINY | {"global_attn_indexes": (0,)}, "SAM"),
    "convnext_tiny": (STAGES, "ConvNeXt"),
    "convnextv2_atto": (STAGES, "ConvNeXt"),
    "swin_tiny_patch4_window7_224": (WINDOWS, "a Swin Transformer"),
    "swinv2_tiny_window8_256": (WINDOWS, "a Swin Transformer"),
    "resnet18": ({}, "a ResNet"),
    "efficientnet_b0": ({}, "a convolutional network"),
}
"""Model of timm -> sizes that make it small, and what it is called."""


def written(path, model):
    """The file that a training script makes of a model."""
    return arrays.write_torch(
        path, {"state_dict": {n: v.numpy() for n, v in model.state_dict().items()}}
    )


@pytest.mark.torch
@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_are_called_by_their_names(tmp_path, name):
    sizes, kind = TIMM[name]
    model = peers.package("timm").create_model(name, **sizes)
    with pytest.raises(ValueError, match=f"looks like {kind}.* not a DINOv2 backbone"):
        read.read_weights(written(tmp_path / "a.pth", model))


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WIDE = SIZES | {"intermediate_size": 64}
DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
HUB = {
    "DINOv3ViTModel": ("DINOv3ViTConfig", WIDE, "DINOv3 in transformers' form"),
    "ViTModel": ("ViTConfig", WIDE, r"a ViT in transformers' form \(ViTModel\)"),
    "ViTForImageClassification": ("ViTConfig", WIDE, "a ViT in transformers' form"),
    "ViTMAEForPreTraining": ("ViTMAEConfig", WIDE | DECODER, "MAE with its decoder"),
    "BeitModel": ("BeitConfig", WIDE, "BEiT"),
    "Data2VecVisionModel": ("Data2VecVisionConfig", WIDE, "BEiT or data2vec"),
    "DeiTModel": ("DeiTConfig", WIDE, "a distilled DeiT"),
    "CLIPVisionModel": ("CLIPVisionConfig", WIDE, "CLIP"),
    "SiglipVisionModel": ("SiglipVisionConfig", WIDE, "SigLIP"),
    "IJepaModel": ("IJepaConfig", WIDE, "I-JEPA"),
    "SwinModel": ("SwinConfig", WINDOWS, "a Swin Transformer"),
    "ConvNextModel": (
        "ConvNextConfig",
        {"hidden_sizes": [8] * 4, "depths": [1] * 4},
        "ConvNeXt",
    ),
    "ResNetModel": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
        "a ResNet",
    ),
}
"""Model of transformers -> its config, sizes that make it small, what it is called."""


@pytest.mark.torch
@pytest.mark.parametrize("name", HUB)
def test_models_of_transformers_are_called_by_their_names(tmp_path, name):
    package = peers.package("transformers")
    config, sizes, kind = HUB[name]
    model = getattr(package, name)(getattr(package, config)(**sizes))
    words = f"looks like {kind}.* not a DINOv2 backbone"
    with pytest.raises(ValueError, match=words):
        read.read_weights(written(tmp_path / "a.pth", model))
    model.save_pretrained(tmp_path / "hub")  # names of version 4, where it has any
    with pytest.raises(ValueError, match=words):
        read.read_weights(tmp_path / "hub" / "model.safetensors")
    with pytest.raises(ValueError, match=f"{words}: .*config.json.*model_type"):
        read.read_weights(tmp_path / "hub")


NAMES = {
    "CLIP of OpenAI": (("visual.class_embedding", "positional_embedding"), "CLIP"),
    "open_clip": (("visual.transformer.resblocks.0.attn.in_proj_weight",), "CLIP"),
    "CLIP's ResNet": (("visual.attnpool.q_proj.weight", "visual.conv1.weight"), "CLIP"),
    "SigLIP of open_clip": (("visual.trunk.attn_pool.latent", "logit_bias"), "SigLIP"),
    "CLIP of transformers": (("text_model.embeddings.token_embedding.weight",), "CLIP"),
    "SAM": (("image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.a"), "SAM"),
    "SAM's decoder": (("prompt_encoder.no_mask_embed.weight",), "SAM"),
    "DINOv3": (("storage_tokens", "rope_embed.periods", "cls_token"), "a DINOv3"),
    "MAE": (("cls_token", "decoder_embed.weight", "decoder_pos_embed"), "MAE"),
    "LoRA": (("blocks.0.attn.qkv.lora_A.default.weight", "cls_token"), "LoRA adapters"),
    "EVA-02": (("blocks.0.attn.q_proj.weight", "blocks.0.attn.q_bias"), "EVA"),
    "mmpretrain": (
        ("backbone.layers.0.ffn.layers.0.0.weight", "backbone.cls_token"),
        "a ViT in the form of mmpretrain",
    ),
    "V-JEPA": (
        ("encoder.blocks.0.attn.qkv.weight", "encoder.patch_embed.proj.weight"),
        "a ViT without a cls token",
    ),
    "torchvision's ViT": (
        ("class_token", "encoder.layers.encoder_layer_0.ln_1.weight"),
        "torchvision's ViT",
    ),
    "torchvision's Swin": (
        ("features.1.0.attn.relative_position_bias_table",),
        "a Swin",
    ),
    "torchvision's ConvNeXt": (("features.1.0.layer_scale",), "ConvNeXt"),
    "ConvNeXt": (("stages.0.0.dwconv.weight",), "ConvNeXt"),
}
"""Names that only one model has, where its own package is not at hand."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_tell_the_model(tmp_path, name, prefix):
    given, kind = NAMES[name]
    tensors = {prefix + n: np.zeros(2, np.float32) for n in given}
    with pytest.raises(ValueError, match=f"looks like {kind}.* not a DINOv2 backbone"):
        read.read_weights(arrays.write_torch(tmp_path / "a.pth", {"model": tensors}))


@pytest.mark.parametrize("registers, ffn", peers.KINDS)
def test_no_form_of_dinov2_is_taken_for_another(registers, ffn):
    state = peers.official(peers.model(registers, ffn))
    forms = state, timm.from_official(state), huggingface.from_official(state)
    for tensors in (*forms, export.chunked(state, 2)):
        assert lookalikes.model(tensors) is None


TASKS = {
    "Dinov2ForImageClassification": ("Dinov2Config", {"num_labels": 3}),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", {}),
    "Dinov2Model": ("Dinov2Config", {"use_mask_token": False}),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", TASKS)
def test_a_task_of_transformers_gives_its_backbone(tmp_path, name):
    torch, package = peers.package("torch", "torch"), peers.package("transformers")
    config, changes = TASKS[name]
    torch.manual_seed(0)
    model = getattr(package, name)(getattr(package, config)(**SIZES, **changes)).eval()
    model.save_pretrained(tmp_path)
    module, params = zoo.load_backbone(None, tmp_path)
    assert module.heads == 2
    (images,) = check.images([(28, 28)], 3)
    cls, _ = check.ours(module, params, images)
    base = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        theirs = base(pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(cls, theirs, atol=1e-5)  # float32 sums, seen 1e-6


@pytest.mark.torch
def test_a_classifier_of_timm_on_a_grid_that_is_not_square_gives_its_backbone(tmp_path):
    torch, package = peers.package("torch", "torch"), peers.package("timm")
    torch.manual_seed(0)
    model = package.create_model(
        "vit_small_patch14_reg4_dinov2", num_classes=5, img_size=(28, 56), **TINY
    ).eval()
    path = written(tmp_path / "a.pth", model)
    module, params = zoo.load_backbone(None, path, heads=2, image_size=(28, 56))
    (images,) = check.images([(28, 56)], 3)
    cls, patches = check.ours(module, params, images)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        theirs = model.forward_features(pixels).numpy()
    np.testing.assert_allclose(cls, theirs[:, 0], atol=1e-5)  # seen 1e-6
    np.testing.assert_allclose(patches, theirs[:, 5:], atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("patch", [8, 16])
def test_a_backbone_of_dino_v1_gives_the_features_of_its_own_code(tmp_path, patch):
    torch, package = peers.package("torch", "torch"), peers.package("timm")
    torch.manual_seed(0)
    # timm's plain ViT is the model of DINO v1, which its own code writes without a head.
    name = f"vit_small_patch{patch}_224"
    model = package.create_model(name, num_classes=0, img_size=32, **TINY).eval()
    path = written(tmp_path / "a.pth", model)
    module, params = zoo.load_backbone(None, path, heads=2)
    assert module.patch_size == patch and module.layerscale is None
    (images,) = check.images([(32, 32)], 3)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        theirs = model.forward_features(pixels).numpy()
    cls, _ = check.ours(module, params, images)
    np.testing.assert_allclose(cls, theirs[:, 0], atol=1e-5)
    assert names.backbone_to_official(params, patch).keys() >= {"mask_token"}
