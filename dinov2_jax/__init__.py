"""DINOv2 self-supervised pretraining in JAX.

Letters of shapes: B images, G groups, V views (U of them the teacher's), N patches,
T tokens, R registers, D width, K prototypes, M masked tokens, L layers, H W pixels.

Importing this package starts no JAX backend.
"""

__version__ = "0.1.0"
