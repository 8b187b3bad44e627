"""ViT-L/14 on ImageNet-22k, the reference's long recipe.

dinov2-jax train --config=configs/vitl14_in22k.py --workdir=... \
    --config.data.train=arrayrecord:/data/in22k/*.array_record

Aim: k-NN 82.0 %, linear 84.5 % after 500 epochs of 1,250 steps at batch 3,072; the
reference reports 3.3 days on 96 A100-80GB. Source: arXiv:2304.07193 appendix B and the
reference's `vitl14.yaml`.
"""

from dinov2_jax import config as base


def get_config():
    """Separate large heads, Sinkhorn targets, no layer decay, long schedules."""
    epoch = 1250  # steps
    config = base.default()
    config.crops.local_size = 98
    config.model.update(variant="L/14", ffn="swiglu", drop_path=0.4)
    config.head.update(prototypes=131_072, bottleneck=384, separate=True)
    config.patch_head.update(prototypes=131_072, bottleneck=256)
    config.loss.targets = "sinkhorn"
    config.optim.update(base_lr=2e-4, layer_decay=1.0, weight_decay_end=0.2)
    config.optim.update(warmup=80 * epoch, freeze_last_layer=epoch)
    config.teacher.update(momentum=0.994, temp_warmup=30 * epoch)
    config.train.update(steps=500 * epoch, batch_size=3072, group_size=32)
    config.mesh.remat = "full"
    return config
