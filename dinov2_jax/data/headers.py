"""The headers of a tar file, read on behind damage and behind its end."""

import tarfile

BLOCK = 512
CHUNK = 1 << 20  # bytes of zeros that are skipped at a time
LONGEST = 1 << 20  # bytes of an extended header; more are damage
EXTENDED = frozenset((*b"xgXLK",))

# What tarfile raises on a header that is damaged, by the part that it fails in.
DAMAGE = (tarfile.TarError, ValueError, IndexError, OverflowError, RecursionError)


class _Header(tarfile.TarInfo):
    """A header whose numbers are bounded before anything is read by them."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        found = super().frombuf(buf, encoding, errors)
        extended = found.type[0] in EXTENDED and found.size > LONGEST
        if found.size < 0 or extended:
            raise tarfile.InvalidHeaderError(f"a header of {found.size} bytes")
        return found


class Headers(tarfile.TarFile):
    """The members of a tar file, and of all that are appended to it.

    Tar files that were put one behind the other (cat a.tar b.tar) are read as one.
    Behind a damaged header the next valid one is looked for, block by block.

    Fields: `archive` counts the files put together, of the member that came last;
    `damage` holds (first byte without a valid header, byte where the next is valid,
    None if there is none); `ended` whether the mark of an end stands at the end.
    """

    def __init__(self, name: str, stream):
        """
        Args:
            name: of the file, for messages.
            stream: the file, open to read bytes.
        """
        self.archive, self.damage, self.ended = 0, [], False
        super().__init__(name, fileobj=stream, tarinfo=_Header, encoding="utf-8")

    def next(self) -> tarfile.TarInfo | None:
        """The next member; None at the end of the file."""
        if self.firstmember is not None:
            member, self.firstmember = self.firstmember, None
            return member
        at, broken, zeros, ended = self.offset, None, 0, False
        while True:
            self.fileobj.seek(at)
            try:
                member = self.tarinfo.fromtarfile(self)
                if member.size < 0 or self.offset <= at:
                    raise tarfile.InvalidHeaderError("a member before its header")
            except tarfile.EmptyHeaderError:
                self._break(broken, None)
                self.offset, self.ended = at, ended
                return None
            except tarfile.EOFHeaderError:
                blocks = self._zeros(at)
                zeros += blocks * (broken is None)
                at, ended = at + blocks * BLOCK, True
            except DAMAGE:
                if broken is None:  # a single block of zeros may have been a header
                    broken = at - BLOCK if zeros == 1 else at
                at, ended = at + BLOCK, False
            else:
                self._break(broken, at)
                self.archive += zeros > 1  # a single block does not end a file
                return member

    def _break(self, start: int | None, stop: int | None) -> None:
        """Keep where no header was valid."""
        if start is not None:
            self.damage.append((start, stop))

    def _zeros(self, at: int) -> int:
        """How many blocks of zeros stand at a place, at least 1."""
        self.fileobj.seek(at)
        total = 0
        while chunk := self.fileobj.read(CHUNK):
            rest = chunk.lstrip(b"\0")
            if rest or len(chunk) < CHUNK:
                zeros = len(chunk) - len(rest)
                total += zeros // BLOCK if rest else -(-zeros // BLOCK)
                break
            total += CHUNK // BLOCK
        return max(total, 1)
