"""A ViT that learns photographs' structure in a few minutes on two CPU cores.

dinov2-jax train --config=configs/demo.py --workdir=runs/demo

Aim: teacher k-NN well above untrained features, raw pixels and colour histograms on
the embedded photographs. The reference's defaults are made for 125,000 steps and do
not move in a few hundred, so this recipe starts LayerScale at 1, decays no layer's
learning rate, lets a faster teacher use a low temperature throughout, cuts larger
parts out of the small tiles and rarely blurs away their texture.
"""

from dinov2_jax import config as base


def get_config():
    """Settings of the demo."""
    config = base.default()
    config.data.update(train="demo:train", val="demo:val")
    config.crops.update(global_size=48, local_size=24, local_number=4)
    config.crops.update(global_scale=(0.5, 1.0), local_scale=(0.15, 0.5))
    config.augment.update(gray=0.5, blur=(0.0, 0.2, 0.1))
    config.model.update(variant="Ti/8", width=128, depth=4, heads=4)
    config.model.update(layerscale=1.0, drop_path=0.0)
    config.head.update(prototypes=512, hidden=512, bottleneck=128)
    config.loss.targets = "sinkhorn"
    config.optim.update(base_lr=8e-3, warmup=20, freeze_last_layer=0)
    config.optim.update(layer_decay=1.0, patch_embed_factor=1.0)
    config.optim.update(weight_decay=0.04, weight_decay_end=0.1)
    config.teacher.update(momentum=0.95, momentum_end=0.99, temp=0.04, temp_warmup=0)
    config.train.update(steps=100, batch_size=32, group_size=32, log_every=10)
    config.train.dtype = "float32"
    config.eval.update(every=20, batch_size=112, resize=64, crop=64)
    config.checkpoint.every = 50
    return config
