"""ViT-g/14, the largest released model.

dinov2-jax train --config=configs/vitg14.py --workdir=... \
    --config.data.train=arrayrecord:/data/curated/*.array_record

Aim: k-NN 83.5 %, linear 86.5 % on LVD-142M; the reference reports 22,016 A100-40GB
hours. Source: arXiv:2304.07193 appendix B and the reference's `vitg14.yaml`.
"""

from dinov2_jax import config as base


def get_config():
    """As ViT-L/14 on ImageNet-22k, with the giant backbone and smaller groups."""
    epoch = 1250  # steps
    config = base.default()
    config.crops.local_size = 98
    config.model.update(variant="g/14", drop_path=0.4)
    config.head.update(prototypes=131_072, bottleneck=384, separate=True)
    config.patch_head.update(prototypes=131_072, bottleneck=256)
    config.loss.targets = "sinkhorn"
    config.optim.update(base_lr=2e-4, layer_decay=1.0, weight_decay_end=0.2)
    config.optim.update(warmup=80 * epoch, freeze_last_layer=epoch)
    config.teacher.update(momentum=0.994, temp_warmup=30 * epoch)
    config.train.update(steps=500 * epoch, batch_size=3072, group_size=12)
    config.mesh.remat = "full"
    return config
