"""DINOv2 self-supervised pretraining in JAX.

`load_backbone` gives a released or trained backbone as a Flax module with parameters,
`load_head` a released head on its features; `save` writes a backbone for PyTorch, its
libraries or a runtime; `embed` writes the features of a source to
disk and `open_features` reads them.

Letters of shapes: B images, G groups, V views (U of them the teacher's), N patches,
T tokens, R registers, D width, K prototypes, M masked tokens, L layers, H W pixels.

Importing this package starts no JAX backend.
"""

import importlib

__version__ = "0.1.0"

PUBLIC = {
    "load_backbone": "zoo",
    "load_head": "zoo",
    "save": "convert.save",
    "embed": "cli.embed",
    "open_features": "shards",
}
"""Public name -> module that has it, imported when the name is first used."""


def __getattr__(name: str):
    """The public names, so that importing the package imports no JAX."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    """What completion offers."""
    return sorted({*globals(), *PUBLIC})
