"""Every setting once: default(), and how a config file and overrides change it.

A config is an ml_collections ConfigDict, locked: a misspelt key or a wrong type is an
error before any work. Paths of a config file are relative to the working directory.
"""

import json
import os
import pathlib
import re
import runpy
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from dinov2_jax import errors, values
from dinov2_jax.values import ConfigError


def default() -> ConfigDict:
    """All settings of a run; the values are the reference's short recipe.

    Source: arXiv:2304.07193 appendix B and the reference's `ssl_default_config.yaml`.
    """
    c = ConfigDict()
    c.seed = 0  # of data order, augmentation, masks, initialisation, stochastic depth

    c.data = ConfigDict()
    c.data.train = (
        ""  # SPEC or SPEC@weight;SPEC@weight: folder:, tfds:, arrayrecord:, demo:
    )
    c.data.val = ""  # SPEC with labels for the in-run k-NN; "" for none
    c.data.workers = 0  # processes that build batches; 0: threads of the main process
    c.data.threads = 2  # threads of a process, one batch each
    c.data.prefetch = 2  # batches kept ready by a process
    c.data.max_pixels = 89_478_485  # larger images are skipped undecoded
    # Samples that become black and white, "LOW,HIGH", of images of more than 8 bits;
    # auto: what the file declares. Float and signed samples need LOW,HIGH.
    c.data.range = "auto"
    c.data.damaged = "fill"  # JPEGs of corrupt data: fill (gray), or skip the record
    c.data.attempts = 3  # reads of a record before it counts as unreadable
    # Where the crops are cut: host, device, or "": devices other than CPUs. The
    # devices see an image of at most `canvas` pixels a side, larger ones shrunk.
    c.data.augment_on = ""
    c.data.canvas = 512
    c.data.resize = "pillow"  # how the host resizes crops: pillow, or simd (faster)
    c.data.max_skipped = 0.2  # share of a process's records a step; a run stops above

    c.crops = ConfigDict()
    c.crops.global_size = 224  # pixels, a multiple of the patch size
    c.crops.local_size = 96
    c.crops.global_number = 2
    c.crops.local_number = 8
    c.crops.global_scale = (0.32, 1.0)  # share of the image's area
    c.crops.local_scale = (0.05, 0.32)

    c.augment = ConfigDict()  # probabilities, unless said otherwise
    c.augment.flip = 0.5
    c.augment.jitter = 0.8
    c.augment.brightness = 0.4  # largest relative change
    c.augment.contrast = 0.4
    c.augment.saturation = 0.2
    c.augment.hue = 0.1  # largest shift, turns of the colour circle
    c.augment.gray = 0.2
    # Global crop 1, 2, local crops. The reference's code inverts what its paper
    # writes, (1.0, 0.1, 0.5); the published models were trained as here.
    c.augment.blur = (0.0, 0.9, 0.5)
    c.augment.blur_sigma = (0.1, 2.0)  # pixels
    c.augment.solarize = (0.0, 0.2, 0.0)
    c.augment.solarize_threshold = 128

    c.masks = ConfigDict()
    c.masks.probability = 0.5  # share of global crops that are masked
    c.masks.ratio = (0.1, 0.5)  # share of patches masked in such a crop

    c.model = ConfigDict()
    c.model.variant = "L/16"  # Ti, S, B, L, g / patch size
    c.model.registers = 0
    c.model.ffn = ""  # mlp or swiglu; "": the variant's own
    c.model.layerscale = 1e-5  # initial value; 0: no LayerScale
    c.model.qkv_bias = True
    c.model.proj_bias = True
    c.model.ffn_bias = True
    c.model.image_size = 0  # pixels, side of the position table; 0: global_size
    c.model.antialias = False  # of the position resize
    c.model.offset = 0.1  # of the position resize
    c.model.drop_path = 0.3
    c.model.uniform_drop = True  # the same rate in all blocks, else linear from 0
    c.model.width = 0  # 0: the variant's own; likewise below
    c.model.depth = 0
    c.model.heads = 0

    c.head = ConfigDict()  # of cls tokens, and of patches unless separate
    c.head.prototypes = 65_536
    c.head.hidden = 2048
    c.head.bottleneck = 256
    c.head.layers = 3
    c.head.separate = False  # patches have a head of their own
    c.patch_head = ConfigDict()  # used when head.separate
    c.patch_head.prototypes = 65_536
    c.patch_head.hidden = 2048
    c.patch_head.bottleneck = 256
    c.patch_head.layers = 3

    c.loss = ConfigDict()
    c.loss.dino_weight = 1.0
    c.loss.koleo_weight = 0.1
    c.loss.ibot_weight = 1.0
    c.loss.student_temp = 0.1
    c.loss.targets = "centering"  # centering, sinkhorn, or none (collapses)
    c.loss.center_momentum = 0.9
    c.loss.sinkhorn_iterations = 3

    c.optim = ConfigDict()
    c.optim.base_lr = 4e-3  # at a batch of 1024
    c.optim.lr_scaling = "sqrt"  # sqrt, linear or none
    c.optim.min_lr = 1e-6
    c.optim.warmup = 12_500  # steps
    c.optim.weight_decay = 0.04
    c.optim.weight_decay_end = 0.4
    c.optim.layer_decay = 0.9  # factor of the learning rate per block from the output
    c.optim.patch_embed_factor = 0.2
    c.optim.betas = (0.9, 0.999)
    c.optim.clip = 3.0  # gradient norm of each sub-network; 0: no clipping
    c.optim.freeze_last_layer = 1250  # steps

    c.teacher = ConfigDict()
    c.teacher.momentum = 0.992
    c.teacher.momentum_end = 1.0
    c.teacher.temp = 0.07
    c.teacher.warmup_temp = 0.04
    c.teacher.temp_warmup = 37_500  # steps

    c.train = ConfigDict()
    c.train.steps = 125_000
    c.train.batch_size = 2048  # images a step over all devices
    c.train.group_size = 64  # images; the reference's batch of one GPU
    c.train.accumulate = 1  # parts of the student's pass
    c.train.log_every = 10  # steps
    c.train.dtype = "bfloat16"  # of the computation; parameters are float32
    c.train.max_rejected = 5  # non-finite steps in a row that stop the run
    c.train.stop_at = 0  # save and end at this step, the schedules unchanged; 0: never
    c.train.minutes = 0.0  # save and end after so long; 0: never

    c.init = ConfigDict()
    # What to start from: an official name, a file or folder of any format, a workdir.
    c.init.weights = ""
    c.init.into = "both"  # student, teacher or both
    c.init.prefix = ""  # of the backbone's names, in a file that holds several
    c.init.heads = (
        0  # attention heads of the file, if it does not tell; 0: what it tells
    )
    c.init.partial = False  # take what fits of the backbone; the rest starts fresh

    c.eval = ConfigDict()  # in-run k-NN on the teacher's features
    c.eval.every = 6250  # steps; 0: never
    c.eval.batch_size = 256
    c.eval.resize = 256  # pixels, shorter side
    c.eval.crop = 224  # pixels
    c.eval.neighbors = (10, 20)  # the first is reported as knn/top1
    c.eval.temp = 0.07
    c.eval.limit = 50_000  # images of each split
    c.eval.pictures = 8  # images of the PCA picture

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 2500  # steps; the last step is always saved
    c.checkpoint.keep = 2  # latest ones
    c.checkpoint.keep_every = 0  # and every one at a multiple of this step; 0: none
    # And the best by k-NN, which is saved whenever an evaluation gives a new best.
    c.checkpoint.keep_best = True

    c.mesh = ConfigDict()
    c.mesh.fsdp = 0  # devices that share one copy of the parameters; 0: as suits
    # What a block keeps for its backward pass: none (recomputed: all is kept), full
    # (its input), dots (its products), offload (its input, in the host's memory).
    c.mesh.remat = "none"
    # Dtype that sums gradients over devices, of the backbone and of the heads; "":
    # train.dtype.
    c.mesh.reduce = ""
    c.mesh.reduce_heads = "float32"
    c.mesh.attention = "xla"  # xla or cudnn (NVIDIA GPUs, bfloat16)
    c.mesh.packed = True  # views of both resolutions through linear layers together
    c.mesh.unroll = 1  # blocks per iteration of the scan
    return c.lock()


def load(spec: str, changes: Sequence[str] = ()) -> ConfigDict:
    """A config file's settings with changes.

    Args:
        spec: PATH or PATH:ARGUMENT, a Python file that defines get_config().
        changes: `section.key=value`, values as in Python, strings without quotes.
    Returns: the locked config.
    Raises: ConfigError, one line.
    """
    path, _, argument = spec.partition(":")
    config = returned(path, argument, "dinov2_jax.config.default()")
    _check_names(config, path)
    _check_values(config, f"{path}: ")
    for text in changes:
        override(config, text)
    _check_values(config)
    return config.lock()


def returned(path: str, argument: str, example: str) -> ConfigDict:
    """What a config file's get_config() returns.

    Args:
        path: a Python file.
        argument: for get_config, "" for none.
        example: where the user sees what such a file returns.
    Raises: ConfigError for a mistake in the file, which names its line; what other
        code that the file calls raises passes as it is.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        file = pathlib.Path(path)
        near = {p.name: str(p) for p in file.parent.glob("*.py")}
        hint = values.hint(file.name, near, 0.6, near.get)
        raise ConfigError(f"--config={values.shown(path)} is no file{hint}")
    try:
        # Not imported: a .pyc of the same second and size would pass for the file.
        found = runpy.run_path(path)
        if "get_config" not in found:
            raise ConfigError(f"it defines no get_config(); see {example}.")
        config = found["get_config"](*([argument] if argument else []))
        if not isinstance(config, ConfigDict):
            raise ConfigError(
                f"get_config() returns {type(config).__name__}, not an ml_collections "
                f"ConfigDict; see {example}."
            )
        list(fields(config))  # what a field refers to may be missing
    except Exception as error:  # a config is a program: it may raise anything
        place = values.mistake(error, path)
        if place is None:
            raise
        raise ConfigError(f"{place}: {_one_line(error)}") from error
    return config


def overrides(rest: Sequence[str]) -> list[str]:
    """The `section.key=value` of arguments `--config.section.key=value`.

    Args:
        rest: arguments that a command does not know itself.
    Raises: ConfigError for an option of another form.
    """
    for text in rest:
        if not text.startswith("--config."):
            raise ConfigError(
                f"unknown option {text!r}; settings are --config.SECTION.KEY=VALUE."
            )
    return [text.removeprefix("--config.") for text in rest]


def override(config: ConfigDict, text: str) -> None:
    """Set one field in place from `section.key=value`.

    Raises: ConfigError if there is no such field (with the nearest one) or the value
        has another type.
    """
    key, found, value = text.partition("=")
    known = dict(fields(config))
    if key not in known:
        raise ConfigError(
            f"config.{values.shown(key)} does not exist{values.hint(key, known, 0.5)}"
        )
    if not found:
        raise ConfigError(f"--config.{key} has no value; write --config.{key}=VALUE.")
    *section, last = key.split(".")
    for part in section:
        config = config[part]
    config[last] = values.parse(key, value, known[key])


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All (dotted name, value) of a config."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def to_json(config: ConfigDict) -> str:
    """The resolved config as indented JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def differences(config: ConfigDict, saved: dict) -> list[str]:
    """`name: saved -> now` for every field whose value differs from saved JSON.

    A field that an earlier version did not have and save counts as its default.
    """
    now = json.loads(to_json(config))

    def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
        found = {}
        for key, value in tree.items():
            inner = isinstance(value, dict)
            name = prefix + key
            found |= flat(value, name + ".") if inner else {name: value}
        return found

    old = flat(json.loads(to_json(default()))) | flat(saved)
    new = flat(now)
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]


def _check_names(config: ConfigDict, path: str) -> None:
    """Raises ConfigError for a field that default() has not, or that is missing."""
    known, found = dict(fields(default())), dict(fields(config))
    for name in found:
        if name not in known:
            hint = values.hint(name, known, 0.5)
            raise ConfigError(f"{path}: config.{name} does not exist{hint}")
    missing = [name for name in known if name not in found]
    if missing:
        raise ConfigError(
            f"{path}: {len(missing)} settings are missing, the first being "
            f"config.{missing[0]}; start from dinov2_jax.config.default()."
        )


def _check_values(config: ConfigDict, start: str = "") -> None:
    """Types, lengths and ranges; ConfigDict itself takes None, and any tuple."""
    known = dict(fields(default()))
    for name, value in fields(config):
        line = f"{start}config.{name}={values.shown(value)}"
        if not values.alike(known[name], value):
            raise ConfigError(f"{line} is no {values.kind(known[name])}.")
        wanted = values.refusal(name, value)
        if wanted:
            raise ConfigError(f"{line} must be {wanted}.")


def _one_line(error: Exception) -> str:
    """An exception's text on one line, without ConfigDict's list of all fields."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]  # ConfigDict wraps a KeyError in an AttributeError
    text = error.args[0] if error.args and isinstance(error.args[0], str) else error
    text = re.sub(
        r" Other fields present: .*(?=\nDid you)", "", str(text), flags=re.DOTALL
    )
    parts = [] if isinstance(error, errors.Error) else [type(error).__name__]
    return ": ".join([*parts, " ".join(text.split())]).rstrip(": ")
