"""Which members of tar files are pictures, and which label belongs to which.

A key is what WebDataset takes for it: the name up to the first dot of its last part.
"""

from collections.abc import Callable, Iterator

import numpy as np

from dinov2_jax import escaping
from dinov2_jax.data import listing, walk
from dinov2_jax.data.faults import Faults

COLUMNS = ["kind", "shard", "start", "size", "own", "stem", "key"]
"""Numbers of a member: what it is; its shard; first byte and length of its data, of a
label its value in place of the length, of a link the name that it leads to in place of
the first byte; then its name, the name without its last extension, and its key, each as
a hash that holds for one tar file alone."""

IMAGE, LABEL, LINK = 0, 1, 2  # an image or label that is a link: + LINK
OTHER_LINK = 4
DROPPED = -1
HOPS = 40  # links that lead to links, as Linux allows

# Finds members by hash: (shard, hashes) -> {hash: (start, size)}
Locate = Callable[[int, set[int]], dict[int, tuple[int, int]]]


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


def entries(
    members: listing.Listing,
    shards: list[str],
    locate: Locate,
    ignored: walk.Ignored,
    faults: Faults,
) -> Iterator[listing.Entry]:
    """The images, in their order, with the labels of their .cls files.

    Args:
        members: images, labels and links with COLUMNS.
        shards: names of the tar files.
        locate: looks for what links lead to.
        ignored: takes the extensions of pictures that belong to another picture.
        faults: takes what is damaged or contradictory.
    """
    table = dict(zip(COLUMNS, map(np.array, members.extra.T), strict=True))

    def name(row: int) -> str:
        shard = escaping.escaped(shards[table["shard"][row]])
        return f"{shard}/{escaping.escaped(members.path(row))}"

    _drop_repeated(table, name, faults)
    _follow(table, locate, name, faults)
    labels, has_own = _labels(table, name, faults)
    _drop_companions(table, members, has_own, ignored)
    for row in np.flatnonzero(table["kind"] == IMAGE):
        place = tuple(int(table[column][row]) for column in ("shard", "start", "size"))
        label = None if labels is None else int(labels[row])
        yield members.path(row), place, label


def _drop_repeated(table: dict, name: Callable[[int], str], faults: Faults) -> None:
    """Keeps the last of several members of one name, as unpacking them would."""
    own = table["own"]
    rows = len(own) - 1 - np.unique(own[::-1], return_index=True)[1]
    if len(rows) == len(own):
        return
    repeated = np.ones(len(own), bool)
    repeated[rows] = False
    for row in np.flatnonzero(repeated & (table["kind"] != OTHER_LINK)):
        faults.add(f"{name(row)} is there again further on, which is taken")
    table["kind"][repeated] = DROPPED


def _follow(table: dict, locate: Locate, name, faults: Faults) -> None:
    """Puts what links lead to in their place."""
    kind, own, start = table["kind"], table["own"], table["start"]
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
    plain = np.flatnonzero((kind == IMAGE) | (kind == LABEL))
    plain = plain[np.argsort(own[plain])]
    wanted: dict[int, set[int]] = {}
    for row, target in targets.items():
        at = np.searchsorted(own[plain], target)
        hit = int(plain[at]) if at < len(plain) else -1
        if hit >= 0 and own[hit] == target and kind[hit] == kind[row] - LINK:
            kind[row], start[row] = kind[hit], start[hit]
            table["size"][row] = table["size"][hit]
        elif kind[row] == IMAGE + LINK:
            wanted.setdefault(int(table["shard"][row]), set()).add(target)
    located = {shard: locate(shard, hashes) for shard, hashes in wanted.items()}
    for row, target in targets.items():
        if kind[row] < LINK:
            continue
        place = located.get(int(table["shard"][row]), {}).get(target)
        if place is None:
            faults.add(f"{name(row)} is a link to what is not in the file")
            continue
        kind[row], (start[row], table["size"][row]) = IMAGE, place


def _labels(table: dict, name, faults: Faults) -> tuple[np.ndarray | None, np.ndarray]:
    """[n] labels, -1 if none; None if no file has any. [n] whether by its own name.

    An image has the label of its name with .cls for its extension, else of its key.
    """
    kind = table["kind"]
    images, given = np.flatnonzero(kind == IMAGE), np.flatnonzero(kind == LABEL)
    labels, has_own = np.full(len(kind), -1, np.int32), np.zeros(len(kind), bool)
    if not len(given):
        return None, has_own
    given = given[np.argsort(table["stem"][given])]
    stems, used = table["stem"][given], np.zeros(len(given), bool)
    for column in ("key", "stem"):  # the nearer one last
        at = np.minimum(np.searchsorted(stems, table[column][images]), len(stems) - 1)
        hit = stems[at] == table[column][images]
        labels[images[hit]] = table["size"][given[at[hit]]]
        used[at[hit]] = True
        has_own[images] = hit
    for row in given[~used]:
        faults.add(f"{name(row)} is the label of no image")
    return labels, has_own


def _drop_companions(table, members, has_own, ignored: walk.Ignored) -> None:
    """Leaves out 0001.seg.png beside 0001.jpg, and such where 0001.jpg is missing.

    A number between the dots, or a label of its own, makes it an image like others.
    """
    images = table["kind"] == IMAGE
    plain = table["stem"] == table["key"]
    keys = np.unique(table["key"][images & plain])
    rows, beside = [], set()
    for row in np.flatnonzero(images & ~plain & ~has_own).tolist():
        base = members.path(row).rpartition(b"/")[2].lower()
        ending = base[base.index(b".") :]
        if any(x[:1].isdigit() for x in ending[1:].split(b".")[:-1]):
            continue
        rows.append((row, ending))
    if not rows:
        return
    at = np.searchsorted(keys, table["key"][[row for row, _ in rows]])
    for (row, ending), place in zip(rows, at.tolist(), strict=True):
        if place < len(keys) and keys[place] == table["key"][row]:
            beside.add(ending)
    for row, ending in rows:
        if ending in beside:
            table["kind"][row] = DROPPED
            ignored.files[escaping.escaped(ending)] += 1
