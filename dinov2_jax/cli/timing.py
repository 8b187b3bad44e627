"""Training steps of a config on synthetic batches, timed on the devices at hand."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import resource
import statistics
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax import errors, flops, processes, sharding
from dinov2_jax.cli import assemble, restoring
from dinov2_jax.data import batch as contract
from dinov2_jax.data import masks
from dinov2_jax.models import dino

WARM = 2  # steps before the clock starts: the first ones fill caches and pools


@dataclasses.dataclass(frozen=True)
class Timing:
    """What the steps of one batch size took.

    Fields: `kind` of the devices, `devices` over all processes; `batch` and `group`
    images; `compile_s` tracing included; `step_s` from the end of one step to the end
    of the next; `memory` bytes at the peak, of the first device, or of this process
    where the device does not tell; `peak` operations a second of one device, None
    where not known; `loss` of the first step.
    """

    kind: str
    devices: int
    process: int
    batch: int
    group: int
    compile_s: float
    step_s: tuple[float, ...]
    memory: int
    memory_of: str
    flops: flops.Flops
    peak: float | None
    loss: float

    def figures(self) -> dict[str, Any]:
        """All of it as plain values, with what follows from it."""
        median = statistics.median(self.step_s)
        full = self.peak and self.peak * self.devices * median
        return {
            "batch_per_device": self.batch // self.devices,
            "fits": True,
            "device": self.kind,
            "devices": self.devices,
            "process": self.process,
            "images_per_s": self.batch / median,
            "step_median_s": median,
            "step_p90_s": float(np.quantile(self.step_s, 0.9)),
            "mfu_nominal": full and self.flops.nominal / full,
            "mfu_executed": full and self.flops.executed / full,
            "memory_bytes": self.memory,
            "memory_of": self.memory_of,
            "compile_s": self.compile_s,
            "group_size": self.group,
            "nominal_flops": self.flops.nominal,
            "executed_flops": self.flops.executed,
            "remat_flops": self.flops.remat,
            "peak_flops_per_device": self.peak,
            "first_loss": self.loss if math.isfinite(self.loss) else None,
            "step_s": list(self.step_s),
        }


def measure(
    config: ConfigDict, per_device: int, steps: int, trace: pathlib.Path | None = None
) -> Timing:
    """Time the step of `train` with so many images a device.

    Args:
        config: all settings; its batch and groups are replaced.
        per_device: images. A group is their largest part up to `train.group_size`.
        steps: to time, after `WARM` others.
        trace: folder for a profile of three more steps.
    Raises: ValueError if the settings do not fit together; what the compiler or a
        device raises.
    """
    processes.start()
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed too
    set_batch(config, per_device, jax.device_count())
    if config.train.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    mesh = assemble.mesh(config)
    model = assemble.model(config, mesh)
    batch = sharding.put(synthetic(config, model.backbone.patch_size), mesh)
    state, update = prepared(config, model, mesh)
    began = time.perf_counter()
    update = update.lower(state, batch).compile()
    compiled = time.perf_counter() - began
    state, terms = update(state, batch)
    loss = float(terms["loss/total"])
    state, taken = timed(update, state, batch, steps)
    memory, of = peak_memory()
    if trace:
        with errors.at(trace, "--trace"), jax.profiler.trace(str(trace)):
            timed(update, state, batch, 3, warm=1)
    first = jax.devices()[0]
    known = flops.peak(first.device_kind) if config.train.dtype == "bfloat16" else None
    return Timing(
        kind=first.device_kind,
        devices=jax.device_count(),
        process=jax.process_index(),
        batch=config.train.batch_size,
        group=config.train.group_size,
        compile_s=compiled,
        step_s=taken,
        memory=memory,
        memory_of=of,
        flops=operations(config, model),
        peak=known,
        loss=loss,
    )


def set_batch(config: ConfigDict, per_device: int, devices: int) -> None:
    """Give a config a batch size, and groups that divide it, in place.

    Raises: ValueError if the settings do not fit together.
    """
    wanted = min(config.train.group_size, per_device)
    group = next(n for n in range(wanted, 0, -1) if per_device % n == 0)
    config.train.update(batch_size=per_device * devices, group_size=group)
    config.eval.every = 0  # nothing is evaluated, and no image is read
    config.data.train = config.data.train or "demo:train"
    assemble.check(config, devices, jax.process_count())


def operations(config: ConfigDict, model: dino.DINO) -> flops.Flops:
    """What the formula says of the config's step."""
    c, t = config.crops, config.train
    groups = t.batch_size // t.group_size
    return flops.step(
        model,
        batch=t.batch_size,
        groups=groups,
        global_size=c.global_size,
        global_number=c.global_number,
        local_size=c.local_size,
        local_number=c.local_number,
        masked=groups * capacity(config, model.backbone.patch_size),
    )


def capacity(config: ConfigDict, patch: int) -> int:
    """Masked patches that the buffer of a group holds."""
    rows = config.train.group_size * config.crops.global_number
    patches = (config.crops.global_size // patch) ** 2
    return masks.upper_bound(
        rows, patches, config.masks.probability, config.masks.ratio
    )


def synthetic(config: ConfigDict, patch: int) -> contract.Batch:
    """This process's rows of a batch of noise, with masks drawn as in training."""
    c, t = config.crops, config.train
    rng = np.random.default_rng([config.seed, jax.process_index()])
    images = t.batch_size // jax.process_count()

    def crops(number: int, size: int) -> np.ndarray:
        return rng.integers(0, 256, (images, number, size, size, 3), np.uint8)

    views = crops(c.global_number, c.global_size), crops(c.local_number, c.local_size)
    side, rows = c.global_size // patch, t.group_size * c.global_number
    largest = masks.max_block(c.global_size, patch)
    share, ratio = config.masks.probability, config.masks.ratio
    drawn = [
        masks.draw(rng, rows, (side, side), share, ratio, max_patches=largest)
        for _ in range(images // t.group_size)
    ]
    drawn = np.stack(drawn).reshape(len(drawn), rows, side * side)
    packed = contract.pack_masks(drawn, c.global_number, capacity(config, patch))
    return contract.Batch(*views, *packed)


def prepared(config: ConfigDict, model: dino.DINO, mesh: Mesh) -> tuple[Any, Any]:
    """A fresh state on its devices, and the jitted step as `train` runs it."""
    recipe = assemble.recipe(config, model, assemble.shapes(config, model))
    wanted = restoring.targets(config, model, recipe, mesh)
    layout = jax.tree.map(lambda s: s.sharding, wanted)
    fresh = functools.partial(restoring.fresh, config, model, recipe)
    state = jax.jit(fresh, out_shardings=layout)(jax.random.key(config.seed))
    jax.block_until_ready(state)  # memory may end here, or the clock start after
    update = assemble.update(recipe, state, mesh)
    return state, update


def timed(
    update: Any, state: Any, batch: Any, steps: int, warm: int = WARM
) -> tuple[Any, tuple[float, ...]]:
    """The state after warm + steps updates, and the seconds of each of the last.

    As in the loop, a step is looked at when the next one is under way: the devices
    never wait for this process.
    """
    ends, before = [], None
    for _ in range(warm + steps):
        state, terms = update(state, batch)
        if before is not None:
            jax.block_until_ready(before)
            ends.append(time.perf_counter())
        before = terms
    jax.block_until_ready(before)
    ends.append(time.perf_counter())
    return state, tuple(np.diff(ends[warm - 1 :]).tolist())


def peak_memory() -> tuple[int, str]:
    """Bytes at the peak, and whose: the first device's, or this process's."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # some back ends have none
        stats = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"], "device"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "process"
