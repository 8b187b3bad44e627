"""Devices that a step can be compiled for without having them."""

import dataclasses
import importlib.util
import math
import re
from typing import Any

from dinov2_jax import errors

GIB = 2**30

CUDA = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 {numbers}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
"""What XLA wants to know of a GPU; the same for all where it says nothing else."""

HOPPER = """
shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132
fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98
cuda_compute_capability { major: 9 }
"""

AMPERE = """
shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108
fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41
cuda_compute_capability { major: 8 }
"""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of device.

    Fields: `memory` bytes that a program may use; `hbm` bytes a second to and from
    it; `link` bytes a second that a device sends to those near it, over all its links
    together; `network` bytes a second that it sends beyond its node; `shapes` of
    slices; `options` of `get_topology_desc`; `name` and `target` of a GPU.
    """

    memory: int
    hbm: float
    link: float
    source: str
    shapes: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    network: float = math.inf
    name: str = ""
    target: str = ""

    @property
    def platform(self) -> str:
        """As JAX calls it."""
        return "cuda" if self.target else "tpu"


FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
DEEP = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
)

KINDS = {
    "v4": Kind(
        int(30.75 * GIB),
        1200e9,
        300e9,
        "cloud.google.com/tpu/docs/v4; links: arXiv:2304.01433 table 4",
        DEEP,
        (("chip_config_name", "megacore"),),  # else a chip is two devices
    ),
    "v5e": Kind(int(15.75 * GIB), 819e9, 200e9, "cloud.google.com/tpu/docs/v5e", FLAT),
    "v5p": Kind(int(95.74 * GIB), 2765e9, 600e9, "cloud.google.com/tpu/docs/v5p", DEEP),
    "v6e": Kind(int(31.25 * GIB), 1638e9, 400e9, "cloud.google.com/tpu/docs/v6e", FLAT),
    "a100": Kind(
        85_100_068_864,
        2039e9,
        300e9,
        "NVIDIA A100 80GB SXM and DGX A100 data sheets",
        network=25e9,
        name="NVIDIA A100-SXM4-80GB",
        target=AMPERE,
    ),
    "h100": Kind(
        84_942_979_072,
        3350e9,
        450e9,
        "NVIDIA H100 SXM and DGX H100 data sheets",
        network=50e9,
        name="NVIDIA H100 80GB HBM3",
        target=HOPPER,
    ),
    "h200": Kind(
        151_397_597_184,
        4800e9,
        450e9,
        "NVIDIA H200 SXM and DGX H200 data sheets",
        network=50e9,
        name="NVIDIA H200 141GB HBM3e",
        target=HOPPER,
    ),
}
"""Name -> what is known of it.

Memory is what libtpu 0.0.42 names when a program does not fit, and for GPUs all that
the driver shows. Links are half of the published bandwidth of both directions, so a
ring along one axis of a torus, which uses two of a chip's four or six links, is slower.
A GPU's network is one 400 Gbit/s adapter (A100: 200), as in the maker's own servers.
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices by name: `shape` is that of a slice, or (nodes, GPUs of a node)."""

    name: str
    kind: Kind
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """Their number."""
        return math.prod(self.shape)

    @property
    def node(self) -> int | None:
        """Devices that the fast links join; None for all."""
        return self.shape[-1] if self.kind.platform == "cuda" else None


def known() -> str:
    """The names that `parse` takes, in words."""
    tpus = [f"{n}:{'|'.join(k.shapes)}" for n, k in KINDS.items() if k.shapes]
    gpus = [n for n, k in KINDS.items() if not k.shapes]
    return f"{', '.join(tpus)}, and NODESxGPUS of {', '.join(gpus)}, as in h100:8x8"


def parse(name: str) -> Topology:
    """A topology of its name, e.g. `v5e:16x16` or `h100:8x8`.

    Raises: ValueError if it is not known, with those that are.
    """
    start, _, shape = name.partition(":")
    kind = KINDS.get(start)
    numbers = tuple(int(n) for n in re.findall(r"\d+", shape))
    fits = kind is not None and re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", shape)
    if fits and kind.shapes:
        fits = shape in kind.shapes
    elif fits:
        fits = len(numbers) == 2 and numbers[1] <= 8
    if not fits:
        raise errors.InputError(f"topology {name!r} is unknown; known are {known()}.")
    return Topology(name, kind, numbers)


def require_compiler(topology: Topology) -> None:
    """Refuse a topology whose compiler is not installed.

    Raises: ValueError that names the extra.
    """
    found = {
        "tpu": ("libtpu",),
        "cuda": ("jax_cuda13_plugin", "jax_cuda12_plugin"),
    }[topology.kind.platform]
    if not any(importlib.util.find_spec(name) for name in found):
        extra = topology.kind.platform
        raise errors.InputError(
            f"{topology.name}: its compiler, {found[0].replace('_', '-')}, is not "
            f"installed; pip install 'dinov2_jax[{extra}]'. No {extra.upper()} device "
            "is needed."
        )


def describe(topology: Topology) -> list[Any]:
    """The devices, which can only be compiled for; JAX must be there."""
    from jax.experimental import topologies

    kind = topology.kind
    if kind.platform == "tpu":
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **dict(kind.options)
        )
        return list(found.devices)
    numbers = f"device_memory_size: {kind.memory} memory_bandwidth: {int(kind.hbm)}"
    found = topologies.get_topology_desc(
        platform="cuda",
        target_config=CUDA.format(name=kind.name, numbers=kind.target + numbers),
        # As a cluster shows itself: a slice is what NVLink joins.
        topology=f"{topology.shape[0]}x1x{topology.shape[1]}",
    )
    return list(found.devices)
