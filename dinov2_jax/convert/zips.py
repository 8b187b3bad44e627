"""Where the members of a zip of stored files lie, with every claim checked.

The standard library's reader inflates what is compressed, keeps an object for each entry
of a directory of any length and does not tell where a member's bytes begin.
"""

import itertools
import mmap
import struct

from dinov2_jax import errors

MAX_MEMBERS = 100_000
LARGE = 0xFFFFFFFF  # a 32-bit field whose value is in the zip64 part
ENCRYPTED = 0x2041  # flag bits: encrypted, strongly encrypted, directory masked
END, LOCATOR, END64 = b"PK\5\6", b"PK\6\7", b"PK\6\6"
ENTRY, LOCAL = b"PK\1\2", b"PK\3\4"


def members(data: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Start and length in bytes of each member, by name.

    Raises: ValueError if the zip is cut off or damaged, if its members overlap or share a
        name, if one is compressed, encrypted or named as a path out of the archive.
    """
    count, start, end = _directory(data)
    if count > MAX_MEMBERS:
        raise errors.InputError(f"its zip has {count} members, over {MAX_MEMBERS}.")
    found: dict[str, tuple[int, int]] = {}
    spans = []
    at = start
    for _ in range(count):
        name, local, size, at = _entry(data, at, end)
        if name in found:
            raise errors.InputError(f"its zip has two members {name!a}.")
        begin = _data_start(data, local, name, start)
        if begin + size > start:
            raise errors.InputError(f"its zip is cut off: {name!a} has {size} bytes.")
        found[name] = begin, size
        spans.append((local, begin + size))
    if at != end:
        raise errors.InputError("its zip is damaged: its directory has another length.")
    spans.sort()
    for (_, last), (first, _) in itertools.pairwise(spans):
        if first < last:
            raise errors.InputError("its zip is damaged: members overlap.")
    return found


def _directory(data: mmap.mmap) -> tuple[int, int, int]:
    """Number of entries of the directory, its start and its end."""
    at = data.rfind(END, max(0, len(data) - 22 - 0xFFFF))
    if at < 0 or at + 22 > len(data):
        raise errors.InputError(
            "its zip is cut off: it has no end record; get the file anew."
        )
    disk, _, _, count, size, start, comment = struct.unpack_from("<4H2LH", data, at + 4)
    end = at
    if at >= 20 and data[at - 20 : at - 16] == LOCATOR:
        end, disks = struct.unpack_from("<QL", data, at - 12)
        if end + 56 > at - 20 or data[end : end + 4] != END64:
            raise errors.InputError("its zip is damaged: it has no zip64 end record.")
        count, size, start = struct.unpack_from("<3Q", data, end + 32)
        disk += disks > 1
    if disk or at + 22 + comment != len(data) or start + size != end:
        raise errors.InputError("its zip is damaged or one part of several.")
    return count, start, end


def _entry(data: mmap.mmap, at: int, end: int) -> tuple[str, int, int, int]:
    """Name, local header, length, and where the next entry begins."""
    if at + 46 > end or data[at : at + 4] != ENTRY:
        raise errors.InputError("its zip is damaged: its directory has a bad entry.")
    flags, method = struct.unpack_from("<2H", data, at + 8)
    packed, size, *lengths = struct.unpack_from("<2L3H", data, at + 20)
    (local,) = struct.unpack_from("<L", data, at + 42)
    after = at + 46 + sum(lengths)
    if after > end:
        raise errors.InputError("its zip is damaged: its directory has a long entry.")
    name = _safe_name(data[at + 46 : at + 46 + lengths[0]])
    extra = data[at + 46 + lengths[0] : at + 46 + lengths[0] + lengths[1]]
    if LARGE in (size, packed, local):
        size, packed, local = _zip64(extra, size, packed, local)
    if flags & ENCRYPTED:
        raise errors.InputError(f"its member {name!a} is encrypted.")
    if method or packed != size:
        raise errors.InputError(
            f"its member {name!a} is compressed; PyTorch stores it plainly."
        )
    return name, local, size, after


def _zip64(extra: bytes, *fields: int) -> list[int]:
    """The fields of an entry, those too large for 32 bits out of its extra part."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        part, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1 and len(part) >= 8 * fields.count(LARGE):
            wide = iter(struct.unpack_from(f"<{len(part) // 8}Q", part))
            return [next(wide) if field == LARGE else field for field in fields]
    raise errors.InputError("its zip is damaged: an entry has no zip64 part.")


def _safe_name(raw: bytes) -> str:
    """A member's name, which must be a plain relative path."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.InputError("its zip is damaged: a name is no UTF-8.") from None
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or any(char in name for char in "\\:\0"):
        raise errors.InputError(f"its member {name[:80]!a} is no plain relative path.")
    return name


def _data_start(data: mmap.mmap, local: int, name: str, limit: int) -> int:
    """Where a member's bytes begin, read off its own header."""
    if local + 30 > limit or data[local : local + 4] != LOCAL:
        raise errors.InputError(f"its zip is damaged: {name[:80]!a} has no header.")
    name_length, extra = struct.unpack_from("<2H", data, local + 26)
    if data[local + 30 : local + 30 + name_length] != name.encode("utf-8"):
        raise errors.InputError(
            f"its zip is damaged: {name[:80]!a} has another name inside."
        )
    return local + 30 + name_length + extra
