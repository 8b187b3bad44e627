"""Semantic segmentation with four blocks, several scales and mirrored views."""

from dinov2_jax.cli import evaluate_segmentation

SETTINGS = evaluate_segmentation.SETTINGS | {
    "blocks": 4,
    "crop": 640,
    "side": 640,
    "ratio": (1.0, 3.0),
    "stride": 320,
    "scales": (1.0, 1.32, 1.73, 2.28, 3.0),
    "mirrored": True,
}
"""Source: arXiv:2304.07193 section 7.4, the protocol +ms."""

inputs = evaluate_segmentation.inputs
run = evaluate_segmentation.run
