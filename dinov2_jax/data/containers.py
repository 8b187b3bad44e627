"""What a file is by its first bytes, to tell of one that was taken for another."""

HEADS = {
    b"\x1f\x8b": "gzip-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ\0": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"\x04\x22\x4d\x18": "LZ4-compressed",
    b"\x1f\x9d": "compressed by compress(1)",
    b"PK\3\4": "a zip file",
    b"PK\5\6": "a zip file",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip file",
    b"Rar!": "a RAR file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "an SQLite file",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"%PDF": "a PDF file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file (git lfs pull)",
}
WORDS = {
    b"<!doctype html": "an HTML page, such as a server's error",
    b"<html": "an HTML page, such as a server's error",
    b"<?xml": "an XML text, such as a server's error",
    b"<error": "an XML text, such as a server's error",
    b"{": "a JSON text, such as a server's error",
}
COMPRESSED = tuple(head for head, what in HEADS.items() if "compressed" in what)


def described(head: bytes) -> str | None:
    """What a file is.

    Args:
        head: its first 512 bytes.
    Returns: words such as "gzip-compressed"; None if they tell nothing.
    """
    if not head:
        return "empty"
    if head[257:262] == b"ustar":
        return "a tar file"
    for start, what in HEADS.items():
        if head.startswith(start):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, what in WORDS.items():
        if text.startswith(start):
            return what
    if b"<html" in text:
        return WORDS[b"<html"]
    return None if head.strip(b"\0") else "zeros"


def of(path: str) -> str | None:
    """`described` of a file on this machine; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return described(file.read(512))
    except OSError:
        return None
