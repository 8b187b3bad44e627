"""Walking folders: regular files alone, each folder once, and a count of the rest."""

import collections
import errno
import functools
import json
import logging
import operator
import os
import stat
import sys
from collections.abc import Iterator

from dinov2_jax import errors
from dinov2_jax.escaping import escaped, shown

SERVICE = frozenset(
    b"""@eaDir @Recycle @Recently-Snapshot #recycle #snapshot ~snapshot __MACOSX
    __pycache__ @tmp found.000 Thumbs.db ehthumbs.db desktop.ini lost+found
    $RECYCLE.BIN""".lower().split()
) | {b"system volume information", b"network trash folder", b"temporary items"}
"""Besides names that open with a dot: what systems, servers and tools leave behind."""

HIDDEN = "hidden or service entries"
UNREADABLE = "unreadable entries"
BROKEN = "broken links"
SPECIAL = "entries that are neither file nor folder"
AGAIN = "folders met again through links"
MENDABLE = (UNREADABLE, BROKEN)  # without a change of the folder that holds them
NAMED = 3  # names that are told of each kind
ENDINGS = 8  # extensions that are told


def is_service(path: str | bytes) -> bool:
    """Whether a path leads to, or through, a hidden or a service entry.

    Args:
        path: with / between its parts; below what the user named, who may name a
            hidden folder.
    """
    if isinstance(path, str):
        path = path.encode(errors="replace")
    return any(
        part.startswith(b".") and part not in (b".", b"..") or part.lower() in SERVICE
        for part in path.split(b"/")
    )


class Ignored:
    """What a source leaves out: how many of each kind, and the first names."""

    def __init__(self, text: str = ""):
        """`text` of an earlier one's `json`."""
        self.files, self.entries = collections.Counter(), collections.Counter()
        self.names: dict[str, list[str]] = collections.defaultdict(list)
        if text:
            files, entries, names = json.loads(text)
            self.files.update(files)
            self.entries.update(entries)
            self.names.update(names)

    def json(self) -> str:
        """All of it as text."""
        return json.dumps([self.files, self.entries, self.names])

    def file(self, name: str | bytes) -> None:
        """Count a regular file whose name says that it is something else."""
        extension = os.path.splitext(os.path.basename(name))[1].lower()
        self.files[escaped(extension)] += 1

    def entry(self, kind: str, name: str | bytes) -> None:
        """Count an entry that is passed over whatever it is called.

        Args:
            kind: such as HIDDEN.
            name: its path in the source.
        """
        self.entries[kind] += 1
        if len(self.names[kind]) < NAMED:
            self.names[kind].append(escaped(name))

    @property
    def mendable(self) -> bool:
        """Whether the next walk may find more although no folder has changed."""
        return any(self.entries[kind] for kind in MENDABLE)

    def __bool__(self) -> bool:
        return bool(self.files or self.entries)

    def __str__(self) -> str:
        parts = []
        if self.files:
            common = self.files.most_common(ENDINGS)
            told = [f"{n} {x or 'without extension'}" for x, n in common]
            rest = self.files.total() - sum(n for _, n in common)
            told += [f"{rest} of other extensions"] * bool(rest)
            parts.append(", ".join(told))
        for kind, number in self.entries.items():
            names = self.names[kind] + ["..."] * (number > len(self.names[kind]))
            parts.append(f"{kind}: {number} ({', '.join(names)})")
        return "; ".join(parts)


def tell(spec: str, count: int, ignored: Ignored, what: str = "images") -> None:
    """Prints on standard error, once and in one line, what a source leaves out.

    Args:
        spec: the source.
        count: images, or `what` else it holds.
    """
    if ignored:
        files = ignored.files.total()
        of = f"{files} of {count + files} files: "
        share = of if files and what == "images" else ""
        say(f"{shown(spec)}: {count} {what}; ignored {share}{ignored}")


@functools.cache
def say(line: str) -> None:
    """Prints a line, not again where one command opens a source twice.

    Printed, for a warning would be lost in how other libraries set up logging; silent
    where warnings are off, as on all processes but the first (see `processes`).
    """
    if logging.getLogger(__name__).isEnabledFor(logging.WARNING):
        print(line, file=sys.stderr, flush=True)


class Walk:
    """The folders below a root; links are followed, but no folder is walked twice.

    A link is passed over where it leads back to a folder that it stands in, or to one
    that the walk reaches by itself.
    """

    def __init__(
        self, root: str | bytes, ignored: Ignored, walked: list[bytes] | None = None
    ):
        """
        Args:
            root: the folder; may be hidden, or a link.
            ignored: takes what is passed over.
            walked: takes every folder that was read.
        Raises: OSError if the root cannot be read.
        """
        self.root, self.ignored = os.fsencode(root), ignored
        self.walked = [] if walked is None else walked
        self._real = os.path.realpath(self.root)
        try:
            status = os.stat(self.root)
            os.scandir(self.root).close()
        except OSError as error:
            raise errors.FileError(
                f"the folder {escaped(self.root)} cannot be read ({error.strerror}); "
                "name one that can."
            ) from error
        self._seen = {(status.st_dev, status.st_ino)}

    def files(self) -> Iterator[bytes]:
        """Paths below the root of all regular files, in the order of their names."""
        stack = [(b"", iter(self.entries()))]
        while stack:
            prefix, entries = stack[-1]
            for name, is_folder in entries:
                if is_folder:
                    path = prefix + name
                    stack.append((path + b"/", iter(self.entries(path))))
                    break
                yield prefix + name
            else:
                stack.pop()

    def entries(self, path: bytes = b"") -> list[tuple[bytes, bool]]:
        """What one folder holds, to be asked once: (name, whether it is a folder).

        Args:
            path: of the folder below the root.
        Returns: sorted; empty if the folder cannot be read, which is counted.
        """
        folder = os.path.join(self.root, path) if path else self.root
        try:
            with os.scandir(folder) as entries:
                # Of a plain file the name alone is held: there may be a million.
                found = [(x.name, None if _is_plain(x) else x) for x in entries]
        except OSError:
            self.ignored.entry(UNREADABLE, path)
            return []
        self.walked.append(folder)
        found.sort(key=operator.itemgetter(0))
        real, kept = os.path.realpath(folder), []
        for name, entry in found:
            kind = False if entry is None else self._kind(entry, real)
            if isinstance(kind, bool):
                kept.append((name, kind))
            else:
                self.ignored.entry(kind, os.path.join(path, name))
        return kept

    def _kind(self, entry: os.DirEntry, folder: bytes) -> bool | str:
        """Whether an entry of a folder is a folder itself; else why it is ignored."""
        if is_service(entry.name):
            return HIDDEN
        try:
            link, status = entry.is_symlink(), os.stat(entry.path)
        except OSError as error:
            broken = error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
            return BROKEN if broken else UNREADABLE
        if stat.S_ISREG(status.st_mode):
            return False
        if not stat.S_ISDIR(status.st_mode):
            return SPECIAL
        key = status.st_dev, status.st_ino
        if key in self._seen or link and self._reached(entry.path, folder):
            return AGAIN
        self._seen.add(key)
        return True

    def _reached(self, link: bytes, folder: bytes) -> bool:
        """Whether a link in a folder leads to where the walk comes anyway."""
        target = os.path.realpath(link)
        if _within(folder, target):
            return True
        return _within(target, self._real) and not is_service(
            os.path.relpath(target, self._real)
        )


def _is_plain(entry: os.DirEntry) -> bool:
    """Whether an entry is a visible regular file, and no link to one."""
    try:
        return entry.is_file(follow_symlinks=False) and not is_service(entry.name)
    except OSError:
        return False  # looked into later


def _within(path: bytes, folder: bytes) -> bool:
    """Whether a real path is a folder or lies below it."""
    return path == folder or path.startswith(os.path.join(folder, b""))
