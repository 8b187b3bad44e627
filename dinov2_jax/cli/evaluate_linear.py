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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors
from dinov2_jax.cli import doubts, frozen, heads, predictions, results, setting
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
    heads.check(job.settings, job.backbone.model.depth)
    sets = test_sets(job)
    found = frozen.classified(job)
    for name, spec in sets.items():
        source = found[f"test/{name}"] = frozen.opened_source(job, spec)
        names = found["train"].classes
        if name in job.labels:
            records = frozen.chosen(len(source), job.settings.limit)
            ids = [source.name(i) for i in records]
            _many_labels(job.labels[name], ids, spec, len(names))
        else:
            frozen.require_names(spec, source)
            classes.named_or_numbered(names, source.classes, name)
    return found


def run(job: Job) -> Outcome:
    """Train all heads, choose one on the validation set, run it on the test sets."""
    job = job.opened(inputs)
    s, backbone = job.settings, job.backbone
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
    doubts.of_labels(job, "val", val.labels, val.source.classes)
    val = frozen.numbered_as(train, val)
    batches = _batches(job, train, apply, features)
    width = backbone.model.width
    found, history = heads.trained(
        job, batches, val.rows, val.labels, train.classes, width
    )
    right = linear.accuracies(found, val.rows, val.labels, kinds)
    chosen, told = heads.chosen_of(right, s)
    images = len(frozen.chosen(len(train), s.limit))
    about = {"spec": job.train, "images": images}
    data = {"train": about, "val": val.about}

    def head(rows: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        return linear.logits(found, chosen, rows, kinds, among)

    guess, scores = predictions.softmax(head(val.rows))
    columns = predictions.classes(val.labels, guess, scores, train.classes)
    images = [predictions.of("val", val.names, val.records, columns)]
    more, about, others = on_tests(job, sets, train.classes, features, head)
    heads.save(job.out / "head.npz", found, chosen, train.classes)
    pictures, tables = results.classified(
        val.labels, guess, train.classes, f"the best head, {chosen[0]}"
    )
    tables += heads.tables(right, s.rates, history)
    notes = ["top1 is that of the head which is best on val, chosen on val itself"]
    return Outcome(told | more, data | about, pictures, tables, images + others, notes)


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

    some = train
    if s.limit:
        some = sources.Subset(train, frozen.chosen(len(train), s.limit))

    def batches(begin: int, batch: int, mesh):
        made = labelled.train_batches(
            some,
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
                frozen.require_labels(job.train, part.labels, len(train.classes))
                images, labels = heads.put(part.images, part.labels, mesh)
                yield apply(images)[kind], labels

    return batches


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


def on_tests(job: Job, sets, names, features, head) -> tuple[dict, dict, list]:
    """Accuracy of the chosen head on each test set, about these sets, and predictions.

    Args:
        job: of the task.
        sets: of `test_sets`.
        names: of the training classes.
        features: spec -> frozen.Set.
        head: (rows [n F], numbers [k] of the classes to choose from, or None) -> logits
            [n k].
    """
    found, about, misses, images = {}, {}, {}, []
    for name, spec in sets.items():
        test, among, truth = features(spec), None, {}
        about[name] = test.about
        if name not in job.labels:
            frozen.require_classes(test)
            among = classes.named_or_numbered(names, test.source.classes, name)
        guess, scores = predictions.softmax(head(test.rows, among))
        if name in job.labels:
            lists = _many_labels(job.labels[name], test.names, spec, len(names))
            share = metrics.multi_label_accuracy(guess, lists)
            columns = predictions.classes(None, guess, scores, names)
            truth = {"labels": [[names[i] for i in some] for some in lists]}
        else:
            share = float((guess == test.labels).mean())
            own = [names[i] for i in among]
            columns = predictions.classes(test.labels, guess, scores, own)
        images.append(predictions.of(name, test.names, test.records, truth | columns))
        parts = name.rsplit("/", 2)
        if len(parts) == 3 and job.tests.get(parts[0], "").startswith("corruptions:"):
            misses.setdefault(parts[0], {}).setdefault(parts[1], []).append(1 - share)
        else:
            found[f"{name}/top1"] = share
    for name, each in misses.items():
        found[f"{name}/mce"] = metrics.mean_corruption_error(each)
        found |= {f"{name}/{k}_error": float(np.mean(v)) for k, v in each.items()}
    return found, about, images


def _many_labels(file: str, names: Sequence[str], spec: str, count: int):
    """Labels of each image: a JSON list by the number, from 1, that ends its name.

    Raises: ValueError if the file is no such list, lacks an image, or has a label that
        is the number of none of the `count` classes, or two images have one number.
    """
    path = pathlib.Path(file)
    try:
        lists = json.loads(path.expanduser().read_text(encoding="utf-8"))
        stems = [pathlib.Path(unescaped(name)).stem for name in names]
        numbers = [int(re.findall(r"\d+", stem)[-1]) for stem in stems]
        if min(numbers) < 1:
            raise errors.InputError("numbers start at 1")
        if len(set(numbers)) < len(numbers):
            raise errors.InputError("several images' names end in one number")
        found = [list(map(int, lists[number - 1])) for number in numbers]
    except (OSError, ValueError, IndexError, TypeError, KeyError) as error:
        raise errors.InputError(
            f"{path} does not give labels of the images of {spec} ({error}); give a "
            "JSON list of lists, such as ReaL's real.json."
        ) from error
    wrong = sorted({x for some in found for x in some if not 0 <= x < count})
    if wrong:
        raise errors.InputError(
            f"{path} has the label {wrong[0]}; labels are numbers of the {count} "
            f"classes of train, 0 to {count - 1}."
        )
    return found
