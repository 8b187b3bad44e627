"""Tar files, written member by member, and broken."""

import io
import tarfile

from PIL import Image


def jpeg(value: int) -> bytes:
    """A picture of its own for each value from 0 to 255."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (value, value // 2, 7)).save(buffer, "JPEG")
    return buffer.getvalue()


def packed(members, format=tarfile.PAX_FORMAT) -> bytes:
    """A tar file of (name, bytes), or (name, type, target) for links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, *rest in members:
            info = tarfile.TarInfo(name)
            if len(rest) == 2:
                info.type, info.linkname = rest
                archive.addfile(info)
            else:
                info.size = len(rest[0])
                archive.addfile(info, io.BytesIO(rest[0]))
    return out.getvalue()


def offsets(data: bytes) -> dict[str, int]:
    """Where the header of each member stands."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member.offset for member in archive}


def listed(source) -> dict[str, tuple[bytes, int]]:
    """{name in its tar file: (bytes, label)} of a source."""
    out = {}
    for index in range(len(source)):
        name = source.name(index).split(".tar/")[1]
        assert name not in out
        out[name] = tuple(source[index])
    return out
