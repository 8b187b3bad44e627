"""Options of the compiler that matter for a training step, by kind of device.

They are given where the step is compiled, for devices that are there and for those
that are only planned for. A name that the compiler does not know is an error there;
in XLA_FLAGS it would end the process.
"""

import os
from collections.abc import Mapping
from typing import Any

_FUSION = "xla_tpu_enable_async_collective_fusion"

# These chips gather weights while the layer before waits, unless told to do both at
# once; v5e does so by itself. The same for reduce-scatters needs more of the scratch
# memory than there is.
_GATHER_WHILE_COMPUTING = {
    "xla_enable_async_all_gather": True,
    _FUSION: True,
    f"{_FUSION}_fuse_all_gather": True,
    f"{_FUSION}_multiple_steps": True,
}

# Moves the start of a collective before work that does not need its result; without it
# NCCL's kernels run one after the other with the rest.
_HIDE_LATENCY = {"xla_gpu_enable_latency_hiding_scheduler": True}

OPTIONS = {
    "TPU v4": _GATHER_WHILE_COMPUTING,
    "TPU v5": _GATHER_WHILE_COMPUTING,  # v5p
    "TPU v6 lite": _GATHER_WHILE_COMPUTING,
    "gpu": _HIDE_LATENCY,
}
"""Kind of a device as JAX names it, or its platform -> options."""


def compiler_options(
    device: Any, environ: Mapping[str, str] = os.environ
) -> dict[str, bool]:
    """The options for one kind of device.

    Args:
        device: of JAX, present or only compiled for.
        environ: whose XLA_FLAGS and LIBTPU_INIT_ARGS take precedence.
    Returns: name -> value, without what the user has set.
    """
    platform = "gpu" if device.platform == "cuda" else device.platform
    found = OPTIONS.get(device.device_kind, OPTIONS.get(platform, {}))
    own = " ".join(environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    given = {text.partition("=")[0].lstrip("-") for text in own.split()}
    return {name: value for name, value in found.items() if name not in given}
