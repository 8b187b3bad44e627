"""Classes of clips: linear heads on the frozen features of a few frames of each.

--train and --val are folder:DIR with DIR/CLASS/CLIP/FRAME.jpg, or DIR/CLASS/CLIP.mp4
(which needs the extra `video`). pool=average is for sets whose classes a photograph
shows (UCF101, K400), pool=concatenate for those that time shows (SSv2).
"""

import types

import numpy as np

from dinov2_jax import errors
from dinov2_jax.cli import (
    doubts,
    evaluate_linear,
    frozen,
    heads,
    predictions,
    results,
    setting,
)
from dinov2_jax.cli.results import Job, Outcome
from dinov2_jax.cli.setting import Setting
from dinov2_jax.data import classes, video
from dinov2_jax.evals import linear

POOLS = ("average", "concatenate")
SETTINGS = (
    frozen.IMAGES
    | heads.SETTINGS
    | setting.Table(
        limit=Setting(0, "clips of a set, evenly spread; 0 for all", setting.WHOLE),
        frames=Setting(8, "frames of a clip, spread evenly", setting.COUNT),
        pool=Setting(
            "average", "what becomes of their features", setting.choice(*POOLS)
        ),
    )
)


def inputs(job: Job) -> dict[str, video.Frames]:
    """What the task reads: clips of the same classes."""
    frozen.require_crop(job.backbone, job.settings)
    heads.check(job.settings, job.backbone.model.depth)
    found = {
        split: _frames(getattr(job, split), job.settings) for split in ("train", "val")
    }
    classes.numbers(found["train"].classes, found["val"].classes, "val")
    return found


def run(job: Job) -> Outcome:
    """Train all heads on the clips of train and choose one on those of val."""
    job = job.opened(inputs)
    s, backbone = job.settings, job.backbone
    sources = job.inputs
    blocks, kinds = max(s.blocks), linear.kinds(s.blocks)
    apply = evaluate_linear.inputs_of(backbone, blocks, s.compute)
    # Which clips there are is settled in the sources, not frame by frame.
    every = types.SimpleNamespace(**vars(s) | {"limit": 0})
    sets = {}
    for split, source in sources.items():
        spec = f"{getattr(job, split)} ({s.frames} frames of {len(source.clips)} clips)"
        found = frozen.features(
            backbone,
            apply,
            f"linear{blocks}",
            spec,
            job.cache,
            every,
            source,
            job.fingerprints[split],
        )
        sets[split] = clips(found, s.frames, s.pool, blocks + 1)
    for split, one in sets.items():
        doubts.of_labels(job, split, one.labels, one.source.classes)
    train, names = sets["train"], sources["train"].classes
    val = frozen.numbered_as(sources["train"], sets["val"])
    width = backbone.model.width * (s.frames if s.pool == "concatenate" else 1)
    batches = heads.from_rows(train.rows, train.labels, s.seed, s.steps)
    found, history = heads.trained(job, batches, val.rows, val.labels, names, width)
    right = linear.accuracies(found, val.rows, val.labels, kinds)
    chosen, told = heads.chosen_of(right, s)
    guess, scores = predictions.softmax(linear.logits(found, chosen, val.rows, kinds))
    columns = predictions.classes(val.labels, guess, scores, names)
    images = [predictions.of("val", val.names, val.records, columns)]
    heads.save(job.out / "head.npz", found, chosen, names)
    pictures, tables = results.classified(
        val.labels, guess, names, f"the best head, {chosen[0]}"
    )
    tables += heads.tables(right, s.rates, history)
    data = {split: one.about for split, one in sets.items()}
    notes = ["top1 is that of the head which is best on val, chosen on val itself"]
    return Outcome(told, data, pictures, tables, images, notes)


def _frames(spec: str, s) -> video.Frames:
    """The frames of a folder of clips."""
    kind, _, root = spec.partition(":")
    if kind != "folder" or not root:
        raise errors.InputError(
            f"{spec}: clips come as folder:DIR with DIR/CLASS/CLIP/FRAME.jpg or video "
            "files DIR/CLASS/CLIP.mp4."
        )
    return video.Frames(root, s.frames, s.limit)


def clips(found: frozen.Set, frames: int, pool: str, parts: int) -> frozen.Set:
    """Features of clips from those of their frames.

    Args:
        found: frames; those of one clip follow one another in the source.
        frames: F of a clip.
        pool: `average` or `concatenate`, each part by itself.
        parts: of a row, [n parts*D].
    Returns: rows [c parts*D] or [c parts*F*D], in the layout that the heads of
        evals/linear read. A clip with an unreadable frame is left out and counted.
    Raises: ValueError if no clip is whole.
    """
    of, counts = np.unique(found.records // frames, return_counts=True)
    whole = of[counts == frames]
    total = len(found.source) // frames
    if not len(whole):
        raise errors.InputError(
            f"{found.about['spec']}: each of {total} clips has a frame that cannot be "
            "decoded; check its files."
        )
    kept = np.isin(found.records // frames, whole)
    rows = np.asarray(found.rows[kept]).reshape(len(whole), frames, parts, -1)
    if pool == "average":
        rows = rows.mean(axis=1)
    else:
        rows = rows.transpose(0, 2, 1, 3)
    labels = found.labels[kept][::frames]
    names = [found.source.clips[clip][0] for clip in whole]
    about = found.about | {
        "clips": len(whole),
        "skipped_clips": total - len(whole),
    }
    return frozen.Set(
        rows.reshape(len(whole), -1), labels, whole, names, found.source, about
    )
