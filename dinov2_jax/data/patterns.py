"""The files that a pattern names: lists, braces, wildcards and folders."""

import collections
import glob
import itertools
import os
import re
import stat
from collections.abc import Iterator

from dinov2_jax import errors
from dinov2_jax.data import braces, remote, walk
from dinov2_jax.data.faults import Refused

MANY = 1_000_000  # files that a pattern may list by braces
NAMED = 3  # files that a line names
SUFFIXES = {
    "tar": re.compile(r"\.tar", re.IGNORECASE),
    "parquet": re.compile(r"\.(parquet|parq|pq)", re.IGNORECASE),
    "arrayrecord": re.compile(r"\.array_?record(-\d+-of-\d+)?", re.IGNORECASE),
}
"""Kind of source -> how its files end, by which they are taken from a folder."""

# Other file systems of fsspec that stand before the one they read, as in
# simplecache::s3://bucket/x.tar.
CHAINS = frozenset(
    ["simplecache", "filecache", "blockcache", "cached", "zip", "tar", "libarchive"]
)
SPLIT = re.compile(
    r"(?<![a-z0-9])(train|training|val|valid|validation|dev|test|testing)(?![a-z])",
    re.IGNORECASE,
)
SAME = {"training": "train", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "dev"), "validation"
)
NUMBERED = re.compile(r"-(\d{3,})-of-(\d{3,})")


def find(kind: str, pattern: str) -> tuple[list[str], list[str]]:
    """The files that a pattern names.

    Args:
        kind: one of SUFFIXES.
        pattern: a path or URL, with *, ?, [...], ** for folders at any depth, lists
            {a,b} and ranges {000..127}; a folder, for all files of the kind in it; or
            several of them with :: between. What exists as it is spelt, up to any /,
            is taken as it is spelt.
    Returns: them, sorted, each once; and what is odd about them, for people.
    Raises: ValueError if there is none, one that is listed is missing, the pattern
        lists more than MANY, or a folder holds several splits.
    """
    spec = f"{kind}:{pattern}"
    identities: dict[str, object] = {}
    missing, repeated, enumerated, complete = [], [], 0, False
    for part in _parts(pattern):
        for one in _alternatives(spec, part):
            enumerated += 1
            matches, searched = _matches(kind, one)
            complete |= searched
            if not matches:
                missing.append(one)
            repeated += [path for path in matches if path in identities]
            identities |= matches
    if not identities:
        raise errors.InputError(f"{spec} matches no file.{_hint(kind, pattern)}")
    if missing:
        raise Refused(
            [f"{path} is missing" for path in missing],
            f"copy {len(missing)} of the {enumerated} files that {spec} lists here, or "
            "list those that are",
        )
    once: dict[object, str] = {}
    for path in sorted(identities):
        if once.setdefault(identities[path], path) != path:
            repeated.append(path)
    notes = []
    if repeated:
        notes.append(f"named more than once, read once: {named(repeated)}")
    if complete:
        notes += _incomplete(once.values())
    return list(once.values()), notes


def exists(pattern: str) -> bool:
    """Whether each part of a pattern names something on this machine.

    Of what braces stand for, only the first is looked for.
    """
    for part in _parts(pattern):
        first = next(_alternatives(pattern, part), part)
        if remote.is_remote(part) or not (os.path.lexists(first) or _globbed(first)):
            return False
    return True


def named(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _parts(pattern: str) -> list[str]:
    """What stands between the :: of a list, as WebDataset writes it."""
    parts: list[str] = []
    while pattern:
        pattern = os.path.expanduser(pattern)
        end = pattern.find("::", _literal(pattern))
        end = len(pattern) if end < 0 else end
        piece, pattern = pattern[:end], pattern[end + 2 :]
        before = parts[-1].rpartition("::")[2] if parts else ""
        if before.partition("://")[0] in CHAINS:
            parts[-1] += f"::{piece}"
        elif piece:
            parts.append(piece)
    return parts


def _literal(path: str) -> int:
    """How much of a path exists as it is spelt, up to the end of one of its parts."""
    end = 0
    for match in re.finditer(r"/+|$", path):
        if match.start() and not os.path.lexists(path[: match.start()]):
            break
        end = match.end()
    return end


def _alternatives(spec: str, part: str) -> Iterator[str]:
    """The patterns without braces that a pattern stands for."""
    start = 0 if remote.is_remote(part) else _literal(part)
    if sum(1 for _ in itertools.islice(braces.expanded(part[start:]), MANY + 1)) > MANY:
        raise errors.InputError(
            f"{spec} lists more than {MANY:,} files by its braces; shorten the range, "
            "or use * for what is there."
        )
    for rest in braces.expanded(part[start:]):
        yield part[:start] + rest


def _matches(kind: str, pattern: str) -> tuple[dict[str, object], bool]:
    """Files of a pattern without braces, each with what makes it the same file.

    Also whether they were searched for, by wildcards or in a folder.
    """
    if remote.is_remote(pattern):
        return _remote_matches(kind, pattern)
    if os.path.isdir(pattern):
        folder = pattern.rstrip("/") or "/"
        return _identities(_chosen(kind, folder, _below(kind, folder))), True
    if os.path.lexists(pattern):
        return _identities([pattern]), False
    return _identities(_visible(kind, pattern, _globbed(pattern))), True


def _globbed(pattern: str) -> list[str]:
    """What a pattern of this machine matches; what exists is no wildcard."""
    start = _literal(pattern)
    escaped = glob.escape(pattern[:start]) + pattern[start:]
    return glob.glob(escaped, recursive=True)


def _visible(kind: str, pattern: str, paths: list[str]) -> list[str]:
    """Paths without the hidden and service entries that a wildcard alone names."""
    start = re.match(r"(?:[^*?[]*/)?", pattern)[0]
    if walk.is_service(pattern.removeprefix(start)):
        return paths  # asked for by name
    ignored, visible = walk.Ignored(), []
    for path in paths:
        if walk.is_service(path.removeprefix(start)):
            ignored.entry(walk.HIDDEN, path.removeprefix(start))
        else:
            visible.append(path)
    walk.tell(f"{kind}:{pattern}", len(visible), ignored, "files")
    return visible


def _identities(paths: list[str]) -> dict[str, object]:
    """Regular files, by path, with device and number, which a link shares."""
    found: dict[str, object] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue  # a broken link is a missing file
        if stat.S_ISREG(status.st_mode):
            found[path] = (status.st_dev, status.st_ino) if status.st_ino else path
    return found


def _remote_matches(kind: str, url: str) -> tuple[dict[str, object], bool]:
    """`_matches` of a URL."""
    system, path = remote.opened(url)
    try:
        if system.isfile(path):
            return {url: url}, False
        if glob.has_magic(path):
            paths = _visible(kind, path, system.glob(path))
        elif system.isdir(path):
            folder = system.unstrip_protocol(path).rstrip("/")
            below = [system.unstrip_protocol(x) for x in system.find(path)]
            below = [x.removeprefix(f"{folder}/") for x in below]
            below = _visible(kind, f"{folder}/*", below)
            return {x: x for x in _chosen(kind, folder, below)}, True
        else:
            paths = []
    except errors.Error:
        raise
    except Exception as error:  # each kind of storage has errors of its own
        raise errors.InputError(f"{url} cannot be listed: {error}") from error
    return {x: x for x in map(system.unstrip_protocol, paths)}, True


def _below(kind: str, folder: str) -> list[str]:
    """Paths of all files below a folder, but of hidden and service entries."""
    ignored = walk.Ignored()
    found = [os.fsdecode(path) for path in walk.Walk(folder, ignored).files()]
    walk.tell(f"{kind}:{folder}", len(found), ignored, "files")
    return found


def _chosen(kind: str, folder: str, below: list[str]) -> list[str]:
    """The files of a kind in a folder. Raises: ValueError if of none or two splits."""
    suffix = re.compile(f".*{SUFFIXES[kind].pattern}", re.IGNORECASE | re.DOTALL)
    paths = [path for path in below if suffix.fullmatch(path)]
    if not paths:
        others = collections.Counter(os.path.splitext(x)[1].lower() for x in below)
        told = ", ".join(
            f"{n} {x or 'without extension'}" for x, n in others.most_common(5)
        )
        raise errors.InputError(
            f"{kind}:{folder} is a folder without files of this kind (it holds "
            f"{told or 'nothing'}); name them by a pattern such as {folder}/*."
        )
    splits: dict[str, list[str]] = {}
    for path in paths:
        matches = SPLIT.findall(path)
        if matches:
            name = matches[-1].lower()
            splits.setdefault(SAME.get(name, name), []).append(path)
    if len(splits) > 1:
        told = ", ".join(
            f"{kind}:{folder}/{_of_split(files[0])} (files: {len(files)})"
            for files in splits.values()
        )
        raise errors.InputError(
            f"{kind}:{folder} holds several splits, {', '.join(sorted(splits))}; name "
            f"one: {told}."
        )
    return [f"{folder}/{path}" for path in paths]


def _of_split(path: str) -> str:
    """The folder or pattern of a split, from one of its files."""
    *_, match = SPLIT.finditer(path)
    slash = path.find("/", match.end())
    return path[: slash if slash >= 0 else match.end()] + "*" * (slash < 0)


def _incomplete(paths) -> Iterator[str]:
    """Notes on sets of files x-00000-of-00002 that lack some."""
    sets: dict[tuple[str, str, str], set[int]] = {}
    for path in paths:
        for match in NUMBERED.finditer(path):
            key = path[: match.start(1)], match[2], path[match.end() :]
            sets.setdefault(key, set()).add(int(match[1]))
    for (head, total, tail), numbers in sets.items():
        missing = [n for n in range(min(int(total), MANY)) if n not in numbers]
        if missing:
            names = [f"{head}{n:0{len(total)}}-of-{total}{tail}" for n in missing[:9]]
            names += [""] * (len(missing) - len(names))
            yield (
                f"{len(missing)} of {int(total)} numbered files are missing: {named(names)}"
            )


def _hint(kind: str, pattern: str) -> str:
    """More on a pattern without a file, where one is at hand."""
    if remote.is_remote(pattern):
        return ""
    globbed = _globbed(os.path.expanduser(pattern))
    if globbed and all(map(os.path.isdir, globbed)):
        return " It matches folders only; name one, or the files in them."
    before, query, columns = pattern.rpartition("?")
    if kind == "parquet" and query and "=" in columns and _globbed(before):
        return f" ?{columns} is unknown; what may follow is ?image=COLUMN&label=COLUMN."
    if globbed:
        return f" What it matches is no regular file: {named(globbed)}."
    return ""
