"""ViT-S/14 on ImageNet-1k, on one device or a few.

dinov2-jax train --config=configs/vits14_in1k.py --workdir=... \
    --config.data.train=folder:/data/imagenet/train --config.data.val=folder:/data/imagenet/val

Aim: a small backbone from one machine; no published number is known for it (the
released ViT-S/14 is distilled from ViT-g). Smaller batches than the paper's, with its
square-root rule; less stochastic depth for the shallower model.
Source: the short recipe of the reference, scaled down.
"""

from dinov2_jax import config as base


def get_config():
    """100 epochs of ImageNet-1k at batch 512."""
    epoch = 2500  # steps, about one pass over 1.28 million images
    config = base.default()
    config.crops.local_size = 98
    config.model.update(variant="S/14", drop_path=0.1)
    config.optim.update(warmup=10 * epoch, freeze_last_layer=epoch)
    config.teacher.update(temp_warmup=30 * epoch)
    config.train.update(steps=100 * epoch, batch_size=512, group_size=64)
    config.eval.every = 2 * epoch
    return config
