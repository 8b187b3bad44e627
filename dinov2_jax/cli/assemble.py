"""From a config to the parts of a run: model, recipe, augmentation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from dinov2_jax import cropping, errors, flags, sharding
from dinov2_jax.data import draws, resizing
from dinov2_jax.models import dino, heads, vit
from dinov2_jax.train import optim, schedules, step
from dinov2_jax.train.state import TrainState

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices as (replica, fsdp), where `mesh.fsdp` is 0 as wide as suits them.

    Args:
        config: all settings.
        devices: present, or only compiled for; None for all that are present.
    Raises: ValueError if they do not divide, or cannot compute attention as set.
    """
    if devices is None:
        devices, platform = jax.devices(), jax.default_backend()
        if config.mesh.attention == "cudnn" and platform != "gpu":
            raise errors.InputError(
                "mesh.attention=cudnn needs NVIDIA GPUs, but the devices here are of "
                f"the platform {platform}; set mesh.attention=xla."
            )
    fsdp = config.mesh.fsdp or sharding.ring(shapes(config, model(config)), devices)
    return sharding.make_mesh(fsdp, devices)


def model(config: ConfigDict, mesh: Mesh | None = None) -> dino.DINO:
    """Backbone and heads; with a mesh, layers gather their sharded weights.

    Raises: ValueError for a variant, size or dtype that does not exist.
    """
    c = config.model
    dtype = _dtype(config, "train.dtype")

    def gathering(key: str) -> Callable | None:
        reduce = _dtype(config, f"mesh.{key}") if config.mesh[key] else dtype
        return None if mesh is None else sharding.gather(mesh, dtype, reduce)

    own = {k: c[k] for k in ("width", "depth", "heads", "ffn") if c[k]}
    backbone = vit.build(
        c.variant,
        **own,
        image_size=c.image_size or config.crops.global_size,
        registers=c.registers,
        layerscale=c.layerscale or None,
        qkv_bias=c.qkv_bias,
        proj_bias=c.proj_bias,
        ffn_bias=c.ffn_bias,
        antialias=c.antialias,
        offset=c.offset,
        drop_path=c.drop_path,
        uniform_drop=c.uniform_drop,
        dtype=dtype,
        remat=config.mesh.remat,
        unroll=config.mesh.unroll,
        gather=gathering("reduce"),
        attention=config.mesh.attention,
    )

    def head(h: ConfigDict) -> heads.Head:
        sizes = (h.prototypes, h.hidden, h.bottleneck, h.layers)
        return heads.Head(*sizes, dtype, gathering("reduce_heads"))

    separate = head(config.patch_head) if config.head.separate else None
    return dino.DINO(backbone, head(config.head), separate, config.mesh.packed)


def _dtype(config: ConfigDict, name: str) -> jnp.dtype:
    """The dtype that a setting names."""
    section, key = name.split(".")
    value = config[section][key]
    if value not in DTYPES:
        raise errors.InputError(f"{name}={value!r}; choose one of {', '.join(DTYPES)}.")
    return DTYPES[value]


def prototypes(config: ConfigDict) -> tuple[int, int]:
    """K of the cls head and of the head that serves patches."""
    patch = config.patch_head if config.head.separate else config.head
    return config.head.prototypes, patch.prototypes


def timetable(config: ConfigDict) -> dict[str, schedules.Schedule]:
    """The schedules that a step reads.

    Raises: ValueError if a warm-up does not fit.
    """
    o, t, steps = config.optim, config.teacher, config.train.steps
    peak = schedules.scaled_lr(o.base_lr, config.train.batch_size, o.lr_scaling)

    def lr(freeze: int = 0) -> schedules.Schedule:
        return schedules.cosine(peak, o.min_lr, steps, o.warmup, freeze=freeze)

    return {
        "lr": lr(),
        "last_layer_lr": lr(o.freeze_last_layer),
        "weight_decay": schedules.cosine(o.weight_decay, o.weight_decay_end, steps),
        "ema_rate": schedules.cosine(1 - t.momentum, 1 - t.momentum_end, steps),
        "teacher_temp": schedules.cosine(
            t.temp, t.temp, t.temp_warmup, t.temp_warmup, start=t.warmup_temp
        ),
    }


def recipe(config: ConfigDict, built: dino.DINO, shapes: dict) -> step.Recipe:
    """The step's constants.

    Args:
        config: all settings.
        built: of `model`.
        shapes: the student's parameters or their shapes.
    """
    c, o, made = config.loss, config.optim, timetable(config)
    factors = optim.multipliers(shapes, o.layer_decay, o.patch_embed_factor)
    tx = optim.adamw(factors, o.betas, clip=o.clip)
    return step.Recipe(
        built,
        tx,
        made,
        step.TARGETS[c.targets],
        dino_weight=c.dino_weight,
        koleo_weight=c.koleo_weight,
        ibot_weight=c.ibot_weight,
        student_temp=c.student_temp,
        center_momentum=c.center_momentum,
        sinkhorn_iterations=c.sinkhorn_iterations,
        accumulate=config.train.accumulate,
        max_rejected=config.train.max_rejected,
        seed=config.seed,
    )


def update(recipe: step.Recipe, state: TrainState, mesh: Mesh) -> Callable:
    """The step of a run, to be compiled for the devices of a mesh.

    Args:
        recipe: what stays the same.
        state: arrays, or their shapes with shardings.
        mesh: of `mesh`.
    Returns: jitted (state, batch) -> (state, scalars); the old state is given up.
    """
    layout = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        functools.partial(step.train_step, recipe),
        donate_argnums=0,
        out_shardings=(layout, NamedSharding(mesh, PartitionSpec())),
        compiler_options=flags.compiler_options(mesh.devices.flat[0]),
    )


def multicrop(config: ConfigDict) -> draws.MultiCrop:
    """The augmentation."""
    return draws.MultiCrop(**config.crops.to_dict(), **config.augment.to_dict())


def canvas(config: ConfigDict) -> int | None:
    """Side of the squares on which images go to the devices; None to cut here."""
    where = config.data.augment_on
    if not where:
        where = "host" if jax.default_backend() == "cpu" else "device"
    return config.data.canvas if where == "device" else None


def cutter(config: ConfigDict, mesh: Mesh) -> Callable:
    """What cuts the crops on the devices, each for its own images.

    Returns: jitted (images, draws) -> (global crops, local crops), as cropping.views.
    """
    cut = functools.partial(cropping.views, multicrop=multicrop(config))
    rows = sharding.BATCH
    return jax.jit(jax.shard_map(cut, mesh=mesh, in_specs=rows, out_specs=rows))


def initial_params(config: ConfigDict, built: dino.DINO, key: jax.Array) -> dict:
    """Fresh parameters of backbone and heads; traceable, nothing is computed twice."""
    c, size = config.crops, config.crops.global_size
    patches = (size // built.backbone.patch_size) ** 2
    return built.init(
        key,
        jnp.zeros((1, c.global_number, size, size, 3)),
        jnp.zeros((1, 0, size, size, 3)),
        jnp.zeros((1, c.global_number, patches), bool),
        jnp.zeros((1, 1), jnp.int32),
        train=False,
        method="student",
    )["params"]


def shapes(config: ConfigDict, built: dino.DINO) -> dict:
    """Shapes of `initial_params`; nothing is computed."""
    key = jax.random.key(config.seed)
    return jax.eval_shape(lambda k: initial_params(config, built, k), key)


def check(config: ConfigDict, devices: int, processes: int) -> None:
    """Refuse settings that do not fit together, before any work.

    Raises: ValueError, one line.
    """
    t, c = config.train, config.crops
    patch = vit.variant(config.model.variant)["patch_size"]
    if not config.data.train:
        raise errors.InputError(
            "config.data.train is empty; name the images, for example "
            "--config.data.train=folder:/path/to/images."
        )
    sizes = {"crops.global_size": c.global_size, "eval.crop": config.eval.crop}
    if c.local_number:
        sizes["crops.local_size"] = c.local_size
    for name, size in sizes.items():
        if size % patch or size < patch:
            near = max(size // patch, 1) * patch
            raise errors.InputError(
                f"config.{name}={size} is no multiple of the patch size {patch}; "
                f"choose {near} or {near + patch}."
            )
    if t.batch_size % t.group_size:
        raise errors.InputError(
            f"train.batch_size={t.batch_size} does not divide into groups of "
            f"train.group_size={t.group_size}; change one of them."
        )
    groups = t.batch_size // t.group_size
    if groups % devices or groups % t.accumulate or groups // t.accumulate % devices:
        raise errors.InputError(
            f"{groups} groups (train.batch_size / train.group_size) do not divide "
            f"evenly over {devices} devices in {processes} processes and "
            f"train.accumulate={t.accumulate} parts; change batch or group size."
        )
    if config.loss.koleo_weight and t.group_size < 2:
        raise errors.InputError(
            "KoLeo needs a neighbour inside each group, but train.group_size=1; use 2 "
            "or more, or loss.koleo_weight=0."
        )
    if c.global_number < 1 or c.global_number + c.local_number < 2:
        raise errors.InputError(
            f"crops.global_number={c.global_number} and crops.local_number="
            f"{c.local_number} make no pair of views; use 2 views or more."
        )
    where = config.data.augment_on
    if where not in ("", "host", "device"):
        raise errors.InputError(
            f"data.augment_on={where!r}; choose host, device, or leave it empty for "
            "whichever suits the backend."
        )
    resizing.require(config.data.resize)
    if canvas(config) and config.data.canvas < c.global_size:
        raise errors.InputError(
            f"data.canvas={config.data.canvas} is smaller than crops.global_size="
            f"{c.global_size}: crops would be enlarged from shrunk images; raise it."
        )
    targets = config.loss.targets
    if targets not in step.TARGETS:
        raise errors.InputError(
            f"loss.targets={targets!r}; choose one of {', '.join(step.TARGETS)}."
        )
    if config.data.val and config.eval.every:
        _check_eval(config.eval, devices)
    timetable(config)


def _check_eval(e: ConfigDict, devices: int) -> None:
    """Raises ValueError if the in-run evaluation cannot be done."""
    if e.crop > e.resize:
        raise errors.InputError(
            f"eval.crop={e.crop} is larger than eval.resize={e.resize}, the image that "
            "it is cut from; change one of them."
        )
    if e.batch_size % devices:
        raise errors.InputError(
            f"eval.batch_size={e.batch_size} does not divide over {devices} devices; "
            "choose a multiple of their number."
        )
