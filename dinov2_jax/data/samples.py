"""Which members of tar files are pictures, and which label belongs to which.

A key is what WebDataset takes for it: the name up to the first dot of its last part.
"""

from collections.abc import Callable, Iterator

import numpy as np

from dinov2_jax import escaping
from dinov2_jax.data import listing, walk
from dinov2_jax.data.faults import Faults

COLUMNS = ("kind", "shard", "start", "size", "own", "stem", "key")
"""Numbers of a member: what it is; its shard; first byte and length of its data, of a
label its value in place of the length, of a link the name that it leads to in place of
the first byte; then its name, the name without its last extension, and its key, each as
a hash that holds for one tar file alone."""

IMAGE, LABEL, LINK = 0, 1, 2  # an image or label that is a link: + LINK
OTHER_LINK = 4
DROPPED = -1
HOPS = 40  # links that lead to links, as Linux allows

# Finds members by hash: hashes -> {hash: (start, size)}
Locate = Callable[[set[int]], dict[int, tuple[int, int]]]


def names(name: bytes, scope: bytes) -> tuple[int, int, int]:
    """Hashes of a name, of the name without extension, and of its key.

    Args:
        name: of a member, with / between its parts.
        scope: the tar file, within which names must differ.
    """
    head, slash, base = name.rpartition(b"/")
    prefix = scope + head + slash
    stem = base.rpartition(b".")[0] or base
    return (
        hash(prefix + base),
        hash(prefix + stem),
        hash(prefix + base.partition(b".")[0]),
    )


class Shard:
    """The members of one tar file, and what becomes of them.

    Fields: each of COLUMNS as [n] int64.
    """

    def __init__(self, members: listing.Listing, start: int, stop: int, path: str):
        """
        Args:
            members: of all tar files, with COLUMNS.
            start, stop: rows of this file's.
            path: of the file.
        """
        rows = members.extra[start:stop]
        for place, column in enumerate(COLUMNS):
            setattr(self, column, np.array(rows[:, place]))
        self._members, self._start, self._file = members, start, escaping.escaped(path)

    def path(self, row: int) -> bytes:
        """The name of a member."""
        return self._members.path(self._start + row)

    def name(self, row: int) -> str:
        """File and name, for people."""
        return f"{self._file}/{escaping.escaped(self.path(row))}"


def entries(
    shard: Shard,
    labelled: bool,
    locate: Locate,
    beside: set[bytes],
    ignored: walk.Ignored,
    faults: Faults,
) -> Iterator[listing.Entry]:
    """The images of a tar file, in their order, with the labels of their .cls files.

    Args:
        shard: its members.
        labelled: whether there is a .cls file in any shard; else folders are classes.
        locate: looks for what links lead to.
        beside: endings such as .seg.png of pictures that belong to another picture, as
            they were met in the shards before; is added to.
        ignored: takes their number.
        faults: takes what is damaged or contradictory.
    """
    _drop_repeated(shard, faults)
    _follow(shard, locate, faults)
    labels, has_own = _labels(shard, faults)
    _drop_companions(shard, has_own, beside, ignored)
    for row in np.flatnonzero(shard.kind == IMAGE).tolist():
        place = int(shard.shard[row]), int(shard.start[row]), int(shard.size[row])
        yield shard.path(row), place, int(labels[row]) if labelled else None


def _drop_repeated(shard: Shard, faults: Faults) -> None:
    """Keeps the last of several members of one name, as unpacking them would."""
    own = shard.own
    rows = len(own) - 1 - np.unique(own[::-1], return_index=True)[1]
    if len(rows) == len(own):
        return
    repeated = np.ones(len(own), bool)
    repeated[rows] = False
    for row in np.flatnonzero(repeated & (shard.kind != OTHER_LINK)).tolist():
        faults.add(f"{shard.name(row)} occurs again later; the later one is used")
    shard.kind[repeated] = DROPPED


def _follow(shard: Shard, locate: Locate, faults: Faults) -> None:
    """Puts what links lead to in their place."""
    kind, own, start = shard.kind, shard.own, shard.start
    links = np.flatnonzero(kind >= LINK)
    if not len(links):
        return
    leads = dict(zip(own[links].tolist(), start[links].tolist(), strict=True))
    targets = {}
    for row in links[kind[links] != OTHER_LINK].tolist():
        target = int(start[row])
        for _ in range(HOPS):
            if target not in leads:
                break
            target = leads[target]
        targets[row] = target
    members = {
        what: dict(
            zip(own[kind == what].tolist(), np.flatnonzero(kind == what).tolist())
        )
        for what in (IMAGE, LABEL)
    }
    wanted = {
        target
        for row, target in targets.items()
        if kind[row] == IMAGE + LINK and target not in members[IMAGE]
    }
    located = locate(wanted) if wanted else {}
    for row, target in targets.items():
        what = int(kind[row]) - LINK
        if target in members[what]:
            hit = members[what][target]
            kind[row], start[row], shard.size[row] = what, start[hit], shard.size[hit]
        elif what == IMAGE and target in located:
            kind[row], (start[row], shard.size[row]) = what, located[target]
        else:
            faults.add(f"{shard.name(row)} links to a name that is not in the file")


def _labels(shard: Shard, faults: Faults) -> tuple[np.ndarray, np.ndarray]:
    """[n] labels, -1 if none; [n] whether a label is of the image's own name.

    An image has the label of its name with .cls for its extension, else of its key.
    """
    kind = shard.kind
    images, given = np.flatnonzero(kind == IMAGE), np.flatnonzero(kind == LABEL)
    labels, has_own = np.full(len(kind), -1, np.int32), np.zeros(len(kind), bool)
    if not len(given):
        return labels, has_own
    given = given[np.argsort(shard.stem[given])]
    stems, used = shard.stem[given], np.zeros(len(given), bool)
    for keys in (shard.key[images], shard.stem[images]):  # the nearer one last
        at = np.minimum(np.searchsorted(stems, keys), len(stems) - 1)
        hit = stems[at] == keys
        labels[images[hit]] = shard.size[given[at[hit]]]
        used[at[hit]] = True
        has_own[images] = hit
    for row in given[~used].tolist():
        faults.add(f"{shard.name(row)} has no image of its name or key")
    return labels, has_own


def _drop_companions(
    shard: Shard, has_own: np.ndarray, beside: set[bytes], ignored: walk.Ignored
) -> None:
    """Leaves out 0001.seg.png beside 0001.jpg, and such where 0001.jpg is missing.

    A number between the dots, or a label of its own, makes it an image like others.
    """
    images, plain = shard.kind == IMAGE, shard.stem == shard.key
    keys, endings = set(shard.key[images & plain].tolist()), {}
    for row in np.flatnonzero(images & ~plain & ~has_own).tolist():
        base = shard.path(row).rpartition(b"/")[2].lower()
        ending = base[base.index(b".") :]
        if any(x[:1].isdigit() for x in ending[1:].split(b".")[:-1]):
            continue
        endings[row] = ending
        if int(shard.key[row]) in keys:
            beside.add(ending)
    for row, ending in endings.items():
        if ending in beside:
            shard.kind[row] = DROPPED
            ignored.files[escaping.escaped(ending)] += 1
