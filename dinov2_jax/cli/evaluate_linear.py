"""Linear classification on frozen features: 52 heads at once, the best one reported.

The head that is best on --val is run on every `--test NAME=SPEC`, too. A test set may
hold a part of the classes (ImageNet-A, R, Sketch) or name them by number (V2);
`--labels NAME=FILE` gives several labels an image (ReaL's real.json); a folder of
ImageNet-C is `--test c=corruptions:DIR`, which gives the mean corruption error.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import sharding
from dinov2_jax.cli import frozen, results
from dinov2_jax.cli.results import Job, Outcome, Table
from dinov2_jax.data import labelled, sources
from dinov2_jax.data.batch import normalize
from dinov2_jax.evals import linear, metrics
from dinov2_jax.models import probes
from dinov2_jax.train import progress

SETTINGS = frozen.IMAGES | {
    "steps": 12_500,  # 10 x 1,250
    "train_batch": 128,  # images a device
    "rates": linear.RATES,  # learning rates at 256 images
    "blocks": (1, 4),  # numbers of last blocks whose cls tokens a head sees
    "augment": True,  # random resized crops and mirror images; else centre crops
    "val_every": 1250,  # steps
    "save_every": 1250,  # steps between two states on disk
    "log_every": 50,
    "seed": 0,
}
FREE = ("batch_size", "workers", "threads", "save_every", "log_every", "val_every")
"""Settings that a training which goes on may change."""


def run(job: Job) -> Outcome:
    """Train all heads, choose one on the validation set, run it on the test sets."""
    s, backbone = job.settings, job.backbone
    _check(s, backbone.model.depth)
    kinds = linear.kinds(s.blocks)
    apply = inputs_of(backbone, max(s.blocks), s.compute)
    kind = f"linear{max(s.blocks)}"

    def features(spec: str, source=None) -> frozen.Set:
        return frozen.features(backbone, apply, kind, spec, job.cache, s, source)

    train = sources.open_source(job.train)
    if not train.classes:
        raise ValueError(f"{job.train} has no classes; use class folders, for one.")
    sets = test_sets(job)
    for name, spec in sets.items():  # before the work, not after it
        opened = sources.open_source(spec)
        if name not in job.labels:
            linear.class_numbers(train.classes, opened.classes)
    val = features(job.val)
    frozen.require_classes(val)
    frozen.require_same_classes(train, val.source)
    heads, history = _trained(job, train, val, apply, features)
    right = linear.accuracies(heads, val.rows, val.labels, kinds)
    chosen = linear.best(right)
    guess = linear.guesses(heads, chosen, val.rows, kinds)
    found = {
        "top1": float(right[chosen[0]][chosen[1]]),
        "rate": float(s.rates[chosen[1]]),
        "blocks": next(k.blocks for k in kinds if k.name == chosen[0]),
        "mean_patch": int(chosen[0].endswith("_mean")),
    }
    data = {"train": {"spec": job.train, "images": len(train)}, "val": val.about}
    head = functools.partial(linear.guesses, heads, chosen, kinds=kinds)
    more, about = on_tests(job, sets, train.classes, features, head)
    _save_head(job.out / "head.npz", heads, chosen, train.classes)
    pictures, tables = results.classified(val, guess, f"the best head, {chosen[0]}")
    tables += [_all_heads(right, s.rates), _validated(history)]
    return Outcome(found | more, data | about, pictures, tables)


def inputs_of(backbone: frozen.Backbone, blocks: int, compute: str) -> Callable:
    """Jitted: [b H W 3] uint8 -> {linearN: [b (N+1)*D] float32}: cls of the last N
    blocks in order of depth, then the mean patch of the last one.
    """
    model = backbone.model.clone(dtype=jnp.dtype(compute))

    @jax.jit
    def apply(params, images):
        found = model.apply(
            {"params": params}, normalize(images), blocks, method="intermediate"
        )
        found = jax.tree.map(lambda a: a.astype(jnp.float32), found)
        # The mean does not ask how the patches lie.
        layers = probes.layers_of(found, (1, found[0].patches.shape[1]))
        return {f"linear{blocks}": probes.linear_input(layers)}

    return functools.partial(apply, backbone.params)


def _check(s, depth: int) -> None:
    """Raises ValueError for settings that cannot be."""
    if not 1 <= min(s.blocks) <= max(s.blocks) <= depth:
        raise ValueError(
            f"blocks={s.blocks}; these weights have {depth}. Choose numbers from 1 to "
            f"{depth}, for example --set blocks=1,{min(4, depth)}."
        )
    for key in ("steps", "train_batch", "val_every", "save_every", "log_every"):
        if getattr(s, key) < 1:
            raise ValueError(f"{key}={getattr(s, key)}; give 1 or more.")
    if min(s.rates) <= 0:
        raise ValueError(f"rates={s.rates} must all be positive.")


def _trained(job: Job, train, val: frozen.Set, apply, features) -> tuple[dict, list]:
    """The heads after all steps, and (step, best accuracy on val) on the way.

    The training goes on from the state that a stopped one left.
    """
    s, mesh = job.settings, sharding.make_mesh()
    kinds, classes = linear.kinds(s.blocks), len(train.classes)
    batch = s.train_batch * mesh.size
    rates = linear.scaled(s.rates, batch)
    width = job.backbone.model.width
    key = jax.random.key(s.seed)
    state = linear.start(key, kinds, width, classes, len(rates))
    path = job.out / "training" / "state.msgpack"
    told = {k: v for k, v in results.asked(job).items() if k not in ("tests", "labels")}
    told["settings"] = {k: v for k, v in told["settings"].items() if k not in FREE}
    told |= {"batch": batch, "classes": list(train.classes)}
    state, history = _restored(path, state, told)
    begin = int(state.step)
    shown = progress.Progress(begin, s.steps)
    step = begin
    with contextlib.closing(
        _batches(job, train, batch, begin, apply, features, mesh)
    ) as made:
        for x, labels in made:
            state, losses = linear.update(state, x, labels, rates, kinds, s.steps)
            step += 1
            last = step == s.steps
            if step % s.val_every == 0 or last:
                right = linear.accuracies(state.heads, val.rows, val.labels, kinds)
                history.append((step, float(max(x.max() for x in right.values()))))
            if step % s.log_every == 0 or last:
                low = min(float(x.min()) for x in losses.values())
                best = f", best on val {history[-1][1]:.3f}" if history else ""
                shown.show(step, f"loss of the best head {low:.4f}{best}")
            if step % s.save_every == 0 or last:
                _save(path, state, told, history)
    return jax.device_get(state.heads), history


def _batches(job: Job, train, batch: int, begin: int, apply, features, mesh):
    """(inputs [b F], labels [b]) of the steps from `begin` on."""
    s, kind = job.settings, f"linear{max(job.settings.blocks)}"
    if s.augment:
        made = labelled.train_batches(
            train,
            size=s.crop,
            seed=s.seed,
            batch_size=batch,
            start=begin,
            stop=s.steps,
            workers=s.workers,
            threads=s.threads,
            max_pixels=s.max_pixels,
        )
        with contextlib.closing(made):
            for part in made:
                _require_labels(part.labels, len(train.classes), job.train)
                images, labels = sharding.put((part.images, part.labels), mesh)
                yield apply(images)[kind], labels
        return
    found = features(job.train)
    frozen.require_classes(found)
    per = max(1, len(found.rows) // batch)  # steps of an epoch
    for step in range(begin, s.steps):
        rng = np.random.default_rng([s.seed, step // per])
        order = rng.permutation(len(found.rows))
        rows = np.take(
            order, range(step % per * batch, (step % per + 1) * batch), mode="wrap"
        )
        yield sharding.put((found.rows[rows], found.labels[rows]), mesh)


def _require_labels(labels: np.ndarray, classes: int, spec: str) -> None:
    """Raises ValueError unless all labels are numbers of classes."""
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{spec}: labels run from {labels.min()} to {labels.max()}; they must lie "
            f"in 0 to {classes - 1}, its {classes} classes."
        )


def test_sets(job: Job) -> dict[str, str]:
    """Test sets by name; a folder of corruptions stands for all sets in it."""
    found = {}
    for name, spec in job.tests.items():
        kind, _, rest = spec.partition(":")
        if kind != "corruptions":
            found[name] = spec
            continue
        home = pathlib.Path(rest).expanduser()
        for corruption in metrics.ALEXNET:
            for severity in range(1, 6):
                folder = home / corruption / str(severity)
                found[f"{name}/{corruption}/{severity}"] = f"folder:{folder}"
    unknown = set(job.labels) - set(job.tests)
    if unknown:
        raise ValueError(f"--labels {min(unknown)}=... names no --test set.")
    return found


def on_tests(job: Job, sets, classes, features, head) -> tuple[dict, dict]:
    """Accuracy of the chosen head on each test set, and about these sets."""
    found, about, errors = {}, {}, {}
    for name, spec in sets.items():
        test = features(spec)
        about[name] = test.about
        if name in job.labels:
            lists = _many_labels(pathlib.Path(job.labels[name]), test)
            share = metrics.multi_label_accuracy(head(test.rows), lists)
        else:
            frozen.require_classes(test)
            among = linear.class_numbers(classes, test.source.classes)
            share = float((head(test.rows, among=among) == test.labels).mean())
        parts = name.rsplit("/", 2)
        if len(parts) == 3 and job.tests.get(parts[0], "").startswith("corruptions:"):
            errors.setdefault(parts[0], {}).setdefault(parts[1], []).append(1 - share)
        else:
            found[f"{name}/top1"] = share
    for name, each in errors.items():
        found[f"{name}/mce"] = metrics.mean_corruption_error(each)
        found |= {f"{name}/{k}_error": float(np.mean(v)) for k, v in each.items()}
    return found, about


def _many_labels(path: pathlib.Path, test: frozen.Set) -> list[list[int]]:
    """Labels of each image: a JSON list by the number, from 1, that ends its name."""
    try:
        lists = json.loads(path.expanduser().read_text())
        numbers = [
            int(re.findall(r"\d+", pathlib.Path(n).stem)[-1]) for n in test.names
        ]
        if min(numbers) < 1:
            raise ValueError("numbers start at 1")
        return [list(map(int, lists[number - 1])) for number in numbers]
    except (OSError, ValueError, IndexError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} does not give labels of the images of {test.about['spec']} "
            f"({error}); give a JSON list of lists, such as ReaL's real.json."
        ) from error


def _save(path: pathlib.Path, state: linear.State, told: dict, history: list) -> None:
    """The state on disk, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    note = json.dumps(told | {"history": history})
    saved = {"state": jax.device_get(state)._asdict(), "note": note}
    part.write_bytes(flax.serialization.msgpack_serialize(saved))
    os.replace(part, path)


def _restored(path: pathlib.Path, state: linear.State, told: dict):
    """The state that a stopped training left with its history, or the one given.

    Raises: ValueError if it is that of other settings.
    """
    if not path.exists():
        return state, []
    saved = flax.serialization.msgpack_restore(path.read_bytes())
    note = json.loads(saved["note"])
    history = [tuple(pair) for pair in note.pop("history")]
    wrong = [k for k in sorted(told) if told[k] != note.get(k)]
    if wrong:
        raise ValueError(
            f"{path.parent} holds heads of another training; different are "
            f"{', '.join(wrong)}. Choose another --out, or remove it."
        )
    return linear.State(**jax.tree.map(jnp.asarray, saved["state"])), history


def _save_head(path: pathlib.Path, heads, chosen: tuple[str, int], classes) -> None:
    """The chosen head alone: kernel, bias, which it is and its classes."""
    name, rate = chosen
    part = path.with_name(path.name + ".part")
    parts = {k: np.asarray(heads[name][k][rate]) for k in ("kernel", "bias")}
    with part.open("wb") as file:
        np.savez(file, kind=name, classes=np.array(classes), **parts)
    os.replace(part, path)


def _all_heads(right: dict[str, np.ndarray], rates) -> Table:
    """Accuracy of every head."""
    rows = [
        [f"{rate:g}", *(results.percent(right[name][i]) for name in right)]
        for i, rate in enumerate(rates)
    ]
    return Table("All heads on val", ["learning rate", *right], rows)


def _validated(history: list) -> Table:
    """The best accuracy on the way."""
    rows = [[step, results.percent(share)] for step, share in history]
    return Table("On the way", ["step", "best head on val"], rows)
