"""Monocular depth outdoors: up to 80 m, judged in the crop of Garg."""

from dinov2_jax.cli import evaluate_depth

SETTINGS = evaluate_depth.SETTINGS | {
    "max_depth": 80.0,
    "scale": 256.0,
    "border": (0, 0, 0, 0),
    "crop": (352, 704),
    "degrees": 0.0,
    "eval_crop": "garg",
}
"""Source: arXiv:2304.07193 section 7.4."""

inputs = evaluate_depth.inputs
run = evaluate_depth.run
