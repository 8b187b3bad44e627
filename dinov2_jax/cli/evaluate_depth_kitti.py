"""Monocular depth outdoors: up to 80 m, judged in the crop of Garg."""

from dinov2_jax.cli import evaluate_depth

SETTINGS = evaluate_depth.SETTINGS | {
    "max_depth": 80.0,
    "scale": 256.0,
    "border": (0, 0, 0, 0),
    "kb_crop": True,
    "crop": (352, 704),
    "brightness": (0.9, 1.1),
    "eval_crop": "garg",
}
"""Source: arXiv:2304.07193 section 7.4; configs/_base_/datasets/kitti.py of the
Monocular-Depth-Estimation-Toolbox, which the reference trained its depth heads with. Its
own configs of KITTI heads, published beside the heads, could not be read here."""

inputs = evaluate_depth.inputs
run = evaluate_depth.run
