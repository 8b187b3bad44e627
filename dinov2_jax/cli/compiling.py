"""Compile the training step for devices that are not at hand; `plan` runs this.

python -m dinov2_jax.cli.compiling REQUEST RESULT, both JSON: a compiler reads its
environment when it is loaded, and if it falls it takes its process along.
"""

import dataclasses
import json
import math
import pathlib
import re
import resource
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from dinov2_jax import config as settings
from dinov2_jax import errors, flops, sharding
from dinov2_jax.cli import assemble, restoring
from dinov2_jax.data import batch as contract
from dinov2_jax.data import masks
from dinov2_jax.models import dino
from dinov2_jax.plan import bounds, fitting, hlo, topologies
from dinov2_jax.train import step as train_step
from dinov2_jax.train.state import TrainState

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def main(request: str, result: str) -> None:
    """Read what is wanted, write what was found."""
    wanted = json.loads(pathlib.Path(request).read_text(encoding="utf-8"))
    try:
        found = planned(**wanted)
    except errors.Error as error:
        found = {"error": " ".join(str(error).split())}
    pathlib.Path(result).write_text(json.dumps(found), encoding="utf-8")


def planned(
    config: str, overrides: list[str], topology: str, per_device: int, fast: bool
) -> dict[str, Any]:
    """All that is known of the step on this topology.

    Args:
        config: PATH or PATH:ARGUMENT. overrides: `section.key=value`.
        topology: a name. per_device: images a step; 0 for the config's own batch.
        fast: whether the program is compiled without its optimisations.
    """
    chosen = topologies.parse(topology)
    c = settings.load(config, overrides)
    images = c.train.steps * c.train.batch_size
    devices = topologies.describe(chosen)
    fit_batch(c, per_device, len(devices))
    hosts = len({device.process_index for device in devices})
    assemble.check(c, len(devices), hosts)
    if c.train.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    mesh = assemble.mesh(c, devices)
    model = assemble.model(c, mesh)
    recipe = assemble.recipe(c, model, assemble.shapes(c, model))
    state = restoring.targets(c, model, recipe, mesh)
    given = batch(c, model.backbone.patch_size, mesh)
    found = {
        "topology": topology,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "hosts": hosts,
        "mesh": dict(mesh.shape),
        "per_device": c.train.batch_size // len(devices),
        "batch": c.train.batch_size,
        "group_size": c.train.group_size,
        "recipe_images": images,
        "limit": chosen.kind.memory,
        "fast": fast,
        "state": parts(state, given),
        "flops": operations(c, model, given, len(devices)),
    }
    found |= compiled(chosen, recipe, state, given, mesh)
    if "memory" in found:
        estimate(found, chosen, devices[0].device_kind)
    return found


def fit_batch(config: ConfigDict, per_device: int, devices: int) -> None:
    """Set the batch of all devices, in groups that lie inside a device.

    Raises: ValueError if no groups of at least two images divide it.
    """
    t = config.train
    if not per_device:
        per_device, rest = divmod(t.batch_size, devices)
        if rest or not per_device:
            raise errors.InputError(
                f"train.batch_size={t.batch_size} does not divide over {devices} "
                "devices; name the images of one with --batch-per-device."
            )
    least = 2 if config.loss.koleo_weight else 1
    size = fitting.group_size(per_device, t.group_size, t.accumulate)
    if size < least:
        raise errors.InputError(
            f"{per_device} images a device make no groups of {least} to "
            f"{t.group_size} (train.group_size) in train.accumulate={t.accumulate} "
            "parts; choose another --batch-per-device."
        )
    t.batch_size, t.group_size = per_device * devices, size
    # Nothing is read; the check of a run wants to hear of images.
    config.data.update(train=config.data.train or "demo:train", val="")


def batch(config: ConfigDict, patch: int, mesh: Mesh) -> contract.Batch:
    """The shapes of a step's batch, laid over all devices."""
    t, c, where = config.train, config.crops, NamedSharding(mesh, sharding.BATCH)
    b, u, v = t.batch_size, c.global_number, c.local_number
    patches = (c.global_size // patch) ** 2
    room = masks.upper_bound(
        t.group_size * u, patches, config.masks.probability, config.masks.ratio
    )

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    return contract.Batch(
        array(np.uint8, b, u, c.global_size, c.global_size, 3),
        array(np.uint8, b, v, c.local_size, c.local_size, 3),
        array(np.bool_, b, u, patches),
        array(np.int32, b // t.group_size, room),
        array(np.float32, b // t.group_size, room),
    )


def on_device(tree: Any) -> int:
    """Bytes of all leaves on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def parts(state: TrainState, given: contract.Batch) -> dict[str, int]:
    """Bytes on a device of what a step is given."""
    return {
        "parameters": on_device(state.params),
        "teacher": on_device(state.teacher),
        "optimizer": on_device(state.opt_state),
        "other": on_device((state.centers, state.step, state.rejected)),
        "batch": on_device(given),
    }


def operations(
    config: ConfigDict, model: dino.DINO, given: contract.Batch, devices: int
) -> dict[str, float]:
    """Operations of a step on one device, by formula."""
    c, (groups, room) = config.crops, given.mask_indices.shape
    found = flops.step(
        model,
        batch=config.train.batch_size,
        groups=groups,
        global_size=c.global_size,
        global_number=c.global_number,
        local_size=c.local_size,
        local_number=c.local_number,
        masked=groups * room,
    )
    names = ("nominal", "executed", "remat", "backbone", "heads", "saved")
    return {name: getattr(found, name) / devices for name in names}


def compiled(
    chosen: topologies.Topology,
    recipe: train_step.Recipe,
    state: TrainState,
    given: contract.Batch,
    mesh: Mesh,
) -> dict[str, Any]:
    """Compile the step as a run does; memory, collectives and times, or what lacks."""
    step = assemble.update(recipe, state, mesh)
    # Without a GPU the compiler cannot try out the tiles of its own products.
    options = {"xla_gpu_enable_triton_gemm": False}
    more = options if chosen.kind.platform == "cuda" else None
    began = time.monotonic()
    lowered = step.lower(state, given)
    found: dict[str, Any] = {"lower_s": time.monotonic() - began}
    began = time.monotonic()
    try:
        program = lowered.compile(compiler_options=more)
    except jax.errors.JaxRuntimeError as error:
        return found | refused(str(error), chosen)
    memory, text = program.memory_analysis(), program.as_text()
    found["compile_s"] = time.monotonic() - began
    found["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["memory"] = {
        "peak": memory.peak_memory_in_bytes,
        "program": memory.generated_code_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "host": memory.host_temp_size_in_bytes,
        "limit": chosen.kind.memory,
    }
    total = found["memory"]["peak"] + found["memory"]["program"]
    found["needed"] = total
    found["fits"] = total <= chosen.kind.memory
    found["collectives"] = [
        dataclasses.asdict(one) | {"bytes": one.bytes, "wire": one.wire}
        for one in hlo.collectives(text)
    ]
    return found


def refused(message: str, chosen: topologies.Topology) -> dict[str, Any]:
    """What a compiler says of a program that does not fit.

    Raises: ValueError for any other message.
    """
    if "RESOURCE_EXHAUSTED" not in message and "out of memory" not in message.lower():
        raise errors.InputError(
            f"the compiler for {chosen.name} failed: {message[:500]}"
        )
    number = r"(\d+(?:\.\d+)?)([KMGT]?)"
    found = re.search(rf"\({number}\) exceeds available HBM", message) or re.search(
        rf"Used {number} of", message
    )
    needed = float(found[1]) * UNITS[found[2]] if found else None
    return {"fits": False, "needed": needed, "said": message.splitlines()[0][:300]}


def estimate(found: dict[str, Any], chosen: topologies.Topology, kind: str) -> None:
    """Add the lower bound of the step's time, and what follows from it."""
    memory, sent = found["memory"], [read(one) for one in found["collectives"]]
    # What lives at the peak of an unoptimised program is not what a run keeps.
    peak = memory["arguments"] if found["fast"] else memory["peak"]
    found["bytes_moved"] = bounds.moved(memory["arguments"], memory["outputs"], peak)
    least = bounds.bound(
        chosen.kind,
        chosen.node,
        peak=flops.peak(kind),
        flops=found["flops"]["executed"] + found["flops"]["remat"],
        moved=found["bytes_moved"],
        sent=sent,
        scheduled=not found["fast"],
    )
    found["bound"] = dataclasses.asdict(least) | {
        "seconds": least.seconds,
        "limit": least.limit,
        "mfu": found["flops"]["nominal"] / least.seconds / flops.peak(kind),
    }
    found["peaks"] = {
        "flops": flops.peak(kind),
        "hbm": chosen.kind.hbm,
        "link": chosen.kind.link,
        "network": chosen.kind.network if chosen.node else None,
        "source": chosen.kind.source,
    }
    found["gathers_overlapped"] = bounds.overlapped(sent, "all-gather")
    found["wire"] = sum(one.wire for one in sent)
    found["run"] = bounds.run(
        found["recipe_images"], found["batch"], found["devices"], least.seconds
    )


def read(one: dict[str, Any]) -> hlo.Collective:
    """A collective from its JSON."""
    names = {field.name for field in dataclasses.fields(hlo.Collective)}
    return hlo.Collective(**{name: one[name] for name in names})


if __name__ == "__main__":
    main(*sys.argv[1:])
