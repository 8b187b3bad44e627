"""Linear classification on frozen features: 52 heads at once, the best one reported.

The head that is best on --val is run on every `--test NAME=SPEC`, too. A test set may
hold a part of the classes (ImageNet-A, R, Sketch) or name them by number (V2);
`--labels NAME=FILE` gives several labels an image (ReaL's real.json); a folder of
ImageNet-C is `--test c=corruptions:DIR`, which gives the mean corruption error.
"""

import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, sharding
from dinov2_jax.cli import frozen, heads, results, setting
from dinov2_jax.cli.results import Job, Outcome
from dinov2_jax.cli.setting import Setting
from dinov2_jax.data import classes, labelled, rules, sources
from dinov2_jax.data.batch import normalize
from dinov2_jax.escaping import unescaped
from dinov2_jax.evals import linear, metrics
from dinov2_jax.models import probes

SETTINGS = (
    frozen.IMAGES
    | heads.SETTINGS
    | setting.Table(
        augment=Setting(
            True,
            "whether it learns from random crops and mirror images, not centre crops",
            setting.SWITCH,
        )
    )
)


def inputs(job: Job) -> dict[str, Any]:
    """The sources of all splits, whose classes are known, and the files of labels."""
    sets = test_sets(job)
    found = frozen.classified(job)
    for name, spec in sets.items():
        source = found[f"test/{name}"] = sources.open_source(spec)
        if name not in job.labels:
            frozen.require_names(spec, source)
            classes.named_or_numbered(found["train"].classes, source.classes, name)
    return found


def run(job: Job) -> Outcome:
    """Train all heads, choose one on the validation set, run it on the test sets."""
    job = job.opened(inputs)
    s, backbone = job.settings, job.backbone
    heads.check(s, backbone.model.depth)
    kinds = linear.kinds(s.blocks)
    apply = inputs_of(backbone, max(s.blocks), s.compute)
    kind = f"linear{max(s.blocks)}"

    sets = test_sets(job)
    splits = {spec: f"test/{name}" for name, spec in sets.items()}
    splits |= {job.train: "train", job.val: "val"}

    def features(spec: str) -> frozen.Set:
        source, sha256 = job.inputs[splits[spec]], job.fingerprints[splits[spec]]
        return frozen.features(
            backbone, apply, kind, spec, job.cache, s, source, sha256
        )

    train = job.inputs["train"]
    val = features(job.val)
    frozen.require_classes(val)
    val = frozen.numbered_as(train, val)
    batches = _batches(job, train, apply, features)
    width = backbone.model.width
    found, history = heads.trained(
        job, batches, val.rows, val.labels, train.classes, width
    )
    right = linear.accuracies(found, val.rows, val.labels, kinds)
    chosen, told = heads.chosen_of(right, s)
    guess = linear.guesses(found, chosen, val.rows, kinds)
    about = {"spec": job.train, "images": len(train)}
    data = {"train": about, "val": val.about}
    head = functools.partial(linear.guesses, found, chosen, kinds=kinds)
    more, about = on_tests(job, sets, train.classes, features, head)
    heads.save(job.out / "head.npz", found, chosen, train.classes)
    pictures, tables = results.classified(
        val.labels, guess, train.classes, f"the best head, {chosen[0]}"
    )
    tables += heads.tables(right, s.rates, history)
    return Outcome(told | more, data | about, pictures, tables)


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


def _batches(job: Job, train, apply, features) -> heads.Batches:
    """What the heads learn from: fresh views, or the features of centre crops."""
    s, kind = job.settings, f"linear{max(job.settings.blocks)}"
    if not s.augment:
        found = features(job.train)
        frozen.require_classes(found)
        return heads.from_rows(found.rows, found.labels, s.seed, s.steps)

    def batches(begin: int, batch: int, mesh):
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
            rules=rules.of(s.range, s.damaged),
        )
        with contextlib.closing(made):
            for part in made:
                _require_labels(part.labels, len(train.classes), job.train)
                images, labels = sharding.put((part.images, part.labels), mesh)
                yield apply(images)[kind], labels

    return batches


def _require_labels(labels: np.ndarray, classes: int, spec: str) -> None:
    """Raises ValueError unless all labels are numbers of classes."""
    if labels.min() < 0 or labels.max() >= classes:
        raise errors.InputError(
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
        raise errors.InputError(f"--labels {min(unknown)}=... names no --test set.")
    return found


def on_tests(job: Job, sets, names, features, head) -> tuple[dict, dict]:
    """Accuracy of the chosen head on each test set, and about these sets."""
    found, about, misses = {}, {}, {}
    for name, spec in sets.items():
        test = features(spec)
        about[name] = test.about
        if name in job.labels:
            lists = _many_labels(pathlib.Path(job.labels[name]), test, len(names))
            share = metrics.multi_label_accuracy(head(test.rows), lists)
        else:
            frozen.require_classes(test)
            among = classes.named_or_numbered(names, test.source.classes, name)
            share = float((head(test.rows, among=among) == test.labels).mean())
        parts = name.rsplit("/", 2)
        if len(parts) == 3 and job.tests.get(parts[0], "").startswith("corruptions:"):
            misses.setdefault(parts[0], {}).setdefault(parts[1], []).append(1 - share)
        else:
            found[f"{name}/top1"] = share
    for name, each in misses.items():
        found[f"{name}/mce"] = metrics.mean_corruption_error(each)
        found |= {f"{name}/{k}_error": float(np.mean(v)) for k, v in each.items()}
    return found, about


def _many_labels(path: pathlib.Path, test: frozen.Set, count: int) -> list[list[int]]:
    """Labels of each image: a JSON list by the number, from 1, that ends its name.

    Raises: ValueError if two images have one number, or a label is no class of `count`.
    """
    try:
        lists = json.loads(path.expanduser().read_text(encoding="utf-8"))
        numbers = [
            int(re.findall(r"\d+", pathlib.Path(unescaped(n)).stem)[-1])
            for n in test.names
        ]
        if min(numbers) < 1:
            raise errors.InputError("numbers start at 1")
        if len(set(numbers)) < len(numbers):
            raise errors.InputError("several images' names end in one number")
        found = [list(map(int, lists[number - 1])) for number in numbers]
        beyond = {x for labels in found for x in labels if not 0 <= x < count}
        if beyond:
            raise errors.InputError(
                f"label {min(beyond)} is none of the {count} classes of train"
            )
        return found
    except (OSError, ValueError, IndexError, TypeError, KeyError) as error:
        raise errors.InputError(
            f"{path} does not give labels of the images of {test.about['spec']} "
            f"({error}); give a JSON list of lists, such as ReaL's real.json."
        ) from error
