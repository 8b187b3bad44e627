"""What the evaluations of pixels share: settings, features, a head's training."""

import contextlib
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax import checkpoint, errors, sharding, tree, zoo
from dinov2_jax.cli import training
from dinov2_jax.cli.results import Job
from dinov2_jax.convert import export
from dinov2_jax.convert import probes as convert
from dinov2_jax.data import dense, dense_batches
from dinov2_jax.data.batch import normalize
from dinov2_jax.evals import probe
from dinov2_jax.models import probes, vit
from dinov2_jax.train import progress

FREE = (
    "head",
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

TRAINING = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "warmup_start": 1e-3,  # share of the learning rate at step 0
    "batch_size": 16,
    "head": "",  # a released or trained head; it is not trained then
    "compute": "float32",  # of the backbone, or bfloat16
    "seed": 0,
    "test_batch": 16,  # windows or images at once
    "threads": 2,  # that read and cut images
    "save_every": 2000,  # steps between two checkpoints of the head
    "log_every": 50,
    "limit": 0,  # images of the validation set, evenly spread; 0 for all
    "pictures": 8,
}
"""Settings of both, with their defaults."""


def features(
    backbone: vit.ViT, blocks: tuple[int, ...], norm: bool, compute: str
) -> Callable[[Any, jax.Array], list[probes.Layer]]:
    """(params, [b H W 3] uint8) -> layers of some blocks.

    Images are padded with the mean colour on all sides to a multiple of the patch, as
    the reference's CenterPadding does; heads stretch their output over the image.
    """
    if compute not in ("float32", "bfloat16"):
        raise errors.InputError(f"{compute=} must be float32 or bfloat16.")
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
    return -(-max(asked, 1) // mesh.size) * mesh.size


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
    _check_batch(s, mesh)
    frozen = everywhere(job.backbone.params, mesh)
    shape = jax.ShapeDtypeStruct((1, *crop, 3), np.uint8)
    layers = jax.eval_shape(apply, frozen, shape)
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
                    update, state, frozen, placed, tell, s.log_every
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
    """
    found = {"val": opened(job.val)}
    if not job.settings.head:
        return {"train": opened(job.train)} | found
    head = pathlib.Path(job.settings.head)
    return found | ({"head": head} if head.expanduser().is_file() else {})


def _check_batch(s: types.SimpleNamespace, mesh: Mesh) -> None:
    """Raises ValueError if a batch or a number of steps cannot be."""
    if s.batch_size < 1 or s.batch_size % mesh.size:
        raise errors.InputError(
            f"batch_size={s.batch_size} does not divide over {mesh.size} devices; "
            "choose a multiple of their number."
        )
    for key in ("steps", "save_every", "log_every", "threads"):
        if getattr(s, key) < 1:
            raise errors.InputError(f"{key}={getattr(s, key)}; give 1 or more.")


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
    found = checkpoint.restore(checkpoints, shapes)
    if found is None:
        return state, []
    _, kept, note = found
    return kept, [tuple(pair) for pair in note["losses"]]


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


def given_head(source: str, kind: type):
    """A released or trained head of a kind, instead of one that is trained here."""
    head, variables = zoo.load_head(source)
    if type(head) is not kind:
        raise errors.InputError(
            f"head={source} is a {type(head).__name__}; this needs a {kind.__name__}."
        )
    return head, variables


def save_head(path: pathlib.Path, kind: str, variables: Mapping) -> None:
    """A head with official names, which `load_head` and PyTorch's modules read."""
    variables = jax.device_get(variables)
    leaves = dict(zip(tree.names(variables), jax.tree.leaves(variables)))
    tensors = {
        name: leaves[leaf].transpose(np.argsort(axes))
        for name, (leaf, axes) in convert.TABLES[kind].items()
    }
    export.write_safetensors(path, tensors, {"head": kind})
