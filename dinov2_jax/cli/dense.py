"""What the evaluations of pixels share: settings, features, a head's training."""

import contextlib
import pathlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax import checkpoint, errors, resume, sharding
from dinov2_jax.cli import frozen, predictions, setting, training
from dinov2_jax.cli.results import Job
from dinov2_jax.cli.setting import Range, Setting
from dinov2_jax.data import dense, dense_batches, rules
from dinov2_jax.data.batch import normalize
from dinov2_jax.evals import probe
from dinov2_jax.models import probes, vit
from dinov2_jax.train import progress

FREE = (
    "head",
    "check_limit",
    "max_pixels",
    "absent_classes",
    "test_batch",
    "threads",
    "save_every",
    "log_every",
    "limit",
    "pictures",
    "stride",
    "scales",
    "mirrored",
    "eval_crop",
)
"""Settings that the training of a head does not depend on."""

BELOW_1 = Range("0 or more and below 1", lambda x: 0 <= x < 1)
TRAINING = frozen.DECODING | setting.Table(
    lr=Setting(1e-3, "peak of the learning rate", setting.POSITIVE),
    betas=Setting((0.9, 0.999), "of AdamW: memory of slopes and squares", BELOW_1),
    warmup_start=Setting(1e-3, "share of the learning rate at step 0", setting.SHARE),
    batch_size=Setting(16, "images of a step, over all devices", setting.COUNT),
    head=Setting("", "released or trained head; none is trained then", setting.TEXT),
    compute=Setting(
        "float32", "number format of the backbone", setting.choice(*frozen.COMPUTE)
    ),
    seed=Setting(0, "seed of the head, the crops and their order", setting.WHOLE),
    test_batch=Setting(16, "windows or images judged at once", setting.COUNT),
    threads=Setting(2, "threads that read and cut images", setting.COUNT),
    save_every=Setting(2000, "steps between two checkpoints", setting.COUNT),
    log_every=Setting(50, "steps between two lines", setting.COUNT),
    limit=Setting(0, "images of val, evenly spread; 0 for all", setting.WHOLE),
    pictures=Setting(8, "predictions on the page", setting.WHOLE),
)
"""Settings of both, with their defaults."""


def decoding(s: types.SimpleNamespace) -> dict[str, Any]:
    """How photographs are decoded, as `data.dense` takes it."""
    return {"max_pixels": s.max_pixels, "rules": rules.of(s.range, s.damaged)}


def require_lengths(s: types.SimpleNamespace, **lengths: int) -> None:
    """Raises ValueError unless settings have so many numbers."""
    for key, length in lengths.items():
        value = getattr(s, key)
        if len(value) != length:
            raise errors.InputError(f"{key}={value}; expected {length} numbers.")


def require_rising(s: types.SimpleNamespace, *keys: str) -> None:
    """Raises ValueError unless settings are (least, most)."""
    for key in keys:
        value = getattr(s, key)
        if len(value) != 2 or value[0] > value[1]:
            raise errors.InputError(f"{key}={value}; expected (least, most).")


def features(
    backbone: vit.ViT, blocks: tuple[int, ...], norm: bool, compute: str
) -> Callable[[Any, jax.Array], list[probes.Layer]]:
    """(params, [b H W 3] uint8) -> layers of some blocks.

    Images are padded with the mean colour on all sides to a multiple of the patch, as
    the reference's CenterPadding does; heads stretch their output over the image.
    """
    backbone = backbone.clone(dtype=jnp.dtype(compute))

    def apply(params: Any, images: jax.Array) -> list[probes.Layer]:
        sides, patch = images.shape[1:3], backbone.patch_size
        more = [-n % patch for n in sides]
        pads = [(0, 0), *((n // 2, n - n // 2) for n in more), (0, 0)]
        x = jnp.pad(normalize(images), pads)
        found = backbone.apply(
            {"params": params}, x, blocks, norm, method="intermediate"
        )
        grid = tuple((n + m) // patch for n, m in zip(sides, more))
        layers = probes.layers_of(found, grid)
        return jax.tree.map(lambda a: a.astype(jnp.float32), layers)

    return apply


def everywhere(made: Any, mesh: Mesh) -> Any:
    """Arrays, whole on every device of a mesh."""
    return jax.device_put(made, NamedSharding(mesh, P()))


def put(images: np.ndarray, count: int, mesh: Mesh) -> jax.Array:
    """Images over the devices, filled up with zeros to `count`."""
    fill = [(0, count - len(images)), *[(0, 0)] * (images.ndim - 1)]
    return sharding.put(np.pad(images, fill), mesh)


def test_batch(asked: int, mesh: Mesh) -> int:
    """The number of images at once: what is asked for, a multiple of the devices."""
    return -(-asked // mesh.size) * mesh.size


def added(numbers: np.ndarray) -> np.ndarray:
    """float64 sums over all processes, exactly, on every one of them."""
    # As pairs of 32 bits: JAX would round 64 of them on the way.
    bits = np.ascontiguousarray(numbers, np.float64)[None].view(np.uint32)
    return np.ascontiguousarray(sharding.whole(bits)).view(np.float64).sum(0)


def trained(
    job: Job,
    head: Any,
    apply: Callable,
    loss: Callable,
    optimizer: Any,
    source: dense.Pairs,
    views: Callable,
    crop: tuple[int, int],
    options: tuple = (),
) -> tuple[dict, list]:
    """The variables of a head after its training, and its losses.

    The training goes on where its last checkpoint in the job's folder stands.

    Args:
        job: weights, settings and folder.
        head: the module.
        apply: of `features`.
        loss, options: of `probe.updates`.
        optimizer: of `probe.adamw`.
        source, views: of `dense_batches.train_batches`.
        crop: (height, width) of what views makes, pixels.
    Raises: ValueError if the folder holds the training of other settings.
    """
    s, mesh = job.settings, sharding.make_mesh()
    backbone = everywhere(job.backbone.params, mesh)
    shape = jax.ShapeDtypeStruct((1, *crop, 3), np.uint8)
    layers = jax.eval_shape(apply, backbone, shape)
    state = probe.start(head, layers, optimizer, jax.random.key(s.seed))
    state = everywhere(state, mesh)
    where = jax.tree.map(lambda x: x.sharding, state)
    update = probe.updates(head, apply, loss, optimizer, *options, placed=where)
    # No step of the training looks at the validation set.
    folder = training.claim(job.out, training.making(job, FREE, ("train",)))
    with contextlib.closing(
        checkpoint.manager(folder, keep=1, keep_best=False)
    ) as checkpoints:
        state, history = _restored(checkpoints, state)
        shown = _progress(int(state.step), s.steps, "step")

        def tell(step: int, mean: float) -> None:
            shown.show(step, f"loss {mean:.4f}")

        while int(state.step) < s.steps:
            begin = int(state.step)
            stop = min((begin // s.save_every + 1) * s.save_every, s.steps)
            with contextlib.closing(_batches(source, views, s, begin, stop)) as made:
                placed = (sharding.put(batch, mesh) for batch in made)
                state, losses = probe.fit(
                    update, state, backbone, placed, tell, s.log_every
                )
            history += losses
            checkpoint.save(checkpoints, stop, state, {"losses": history})
        checkpoints.wait_until_finished()
    return {"params": state.params, **state.stats}, history


def inputs(job: Job, opened: Callable[[str], Any]) -> dict[str, Any]:
    """What a task of pixels reads: the pairs, and the head instead of a training set.

    Args:
        job: of the task.
        opened: the pairs of a spec.
    Raises: ValueError, before anything is opened, if the devices cannot share a batch.
    """
    if not job.settings.head:
        _check_batch(job.settings, sharding.make_mesh())
    require_lengths(job.settings, betas=2)
    found = {"val": opened(job.val)}
    if not job.settings.head:
        return {"train": opened(job.train)} | found
    head = pathlib.Path(job.settings.head)
    return found | ({"head": head} if head.expanduser().is_file() else {})


def _check_batch(s: types.SimpleNamespace, mesh: Mesh) -> None:
    """Raises ValueError if the devices cannot share a batch."""
    if s.batch_size % mesh.size:
        raise errors.InputError(
            f"batch_size={s.batch_size} does not divide over {mesh.size} devices; "
            "choose a multiple of their number."
        )


def _batches(source, views, s, begin: int, stop: int) -> Iterator:
    """This process's parts of the batches of some steps."""
    return dense_batches.train_batches(
        source,
        views,
        seed=s.seed,
        batch_size=s.batch_size,
        start=begin,
        stop=stop,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=s.threads,
    )


def _restored(checkpoints: Any, state: probe.State) -> tuple[probe.State, list]:
    """The state of the last checkpoint with its losses, or the one given with none."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    found = resume.newest(checkpoints, shapes)
    if found is None:
        return state, []
    _, kept, note = found
    return kept, [tuple(pair) for pair in note["losses"]]


def splits(job: Job, train: dense.Pairs | None, val: dense.Pairs, **more) -> dict:
    """What results tell of the sets; `more` is of val."""
    images = min(len(val), job.settings.limit or len(val))
    found = {"val": {"spec": job.val, "images": images, **more}}
    if train is None:
        return found
    return {"train": {"spec": job.train, "images": len(train)}} | found


def of_images(val: dense.Pairs, records: Sequence[int], scores: Sequence[dict]) -> dict:
    """What becomes of each image, see `predictions.of`.

    Args:
        val: the set.
        records: numbers in it.
        scores: of each, by the same names.
    """
    columns = {key: [one[key] for one in scores] for key in scores[0]}
    names = [val.name(number) for number in records]
    return predictions.of("val", names, np.array(records), columns)


def mine(source: dense.Pairs, s: types.SimpleNamespace) -> Iterator:
    """This process's part of a validation set."""
    return dense_batches.val_pairs(
        source,
        limit=s.limit,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=s.threads,
    )


def meter(source: dense.Pairs, s: types.SimpleNamespace) -> progress.Progress:
    """Counts the images of `mine`."""
    count = min(len(source), s.limit or len(source))
    part = range(jax.process_index(), count, jax.process_count())
    return _progress(0, len(part), "image")


def _progress(first: int, last: int, unit: str) -> progress.Progress:
    """Shown by the first process alone."""
    out = progress.NOWHERE if jax.process_index() else None
    return progress.Progress(first, last, out, unit)
