r"""Names of files and classes as text that every file, page and terminal can hold.

A file name is bytes: it need not be UTF-8, and may hold newlines, tabs and what moves
a terminal's cursor. Wherever a name is written or printed it is `escaped`:

    caf\xe9.jpg     a byte that is not UTF-8
    two\nlines.jpg  a control character; others are \t, \x1b, \u202e
    a\\b.jpg        a backslash itself
"""

import os
import re
import unicodedata

from dinov2_jax import errors

SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
JOINERS = "\u200c\u200d"  # invisible, but part of how words and emoji are spelt
ESCAPE = re.compile(r"\\(?:(\\)|([ntr])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def escaped(name: str | bytes | os.PathLike) -> str:
    """A name as one line of plain text, from which `unescaped` gives the name again.

    Args:
        name: as the file system spells it: bytes, or as os.fsdecode gives it.
    Returns: the name itself where it is printable and holds no backslash.
    """
    return shown(_decoded(os.fspath(name)).replace("\\", "\\\\"))


def unescaped(text: str) -> str:
    """The name that was `escaped`; bytes that are not UTF-8 as surrogates (PEP 383).

    `unescaped(text).encode("utf-8", "surrogateescape")` are the bytes of the file name.
    """
    return ESCAPE.sub(_character, text)


def shown(text: str) -> str:
    """Any text as one printable line; backslashes stay, so it cannot be undone."""
    text = _decoded(text)
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() or x in JOINERS else _escape(x) for x in text)


def normalized(name: str | bytes) -> str:
    """The name of a class, equal for equal words on every system.

    macOS spells a folder name as letters with their accents apart (NFD); here all are
    in one piece (NFC), and escaped.
    """
    return unicodedata.normalize("NFC", escaped(name))


def utf8(path: str | os.PathLike, reader: str) -> str:
    """A path as text, for libraries that take only UTF-8.

    Raises: ValueError that names the `reader` if the path is not UTF-8.
    """
    text = _decoded(os.fspath(path))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise errors.InputError(
            f"the path {escaped(path)} is not UTF-8, and {reader} opens no other; rename "
            "it, or give a link to it."
        ) from error
    return text


def _decoded(name: str | bytes) -> str:
    """Text whose only surrogates are bytes that are not UTF-8.

    Under another locale than UTF-8, os.fsdecode makes surrogates of sound UTF-8, too.
    """
    try:
        if isinstance(name, str):
            name = name.encode("utf-8", "surrogateescape")
        return name.decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name  # surrogates of no file name


def _escape(character: str) -> str:
    """What stands for one character that cannot be shown."""
    code = ord(character)
    if character in SHORT:
        return SHORT[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _character(match: re.Match) -> str:
    """The character of one escape."""
    backslash, short, byte, *codes = match.groups()
    if backslash or short:
        return backslash or {"n": "\n", "t": "\t", "r": "\r"}[short]
    if byte:
        code = int(byte, 16)
        return chr(code if code < 0x80 else 0xDC00 + code)
    code = int(codes[0] or codes[1], 16)
    return chr(code) if code < 0x110000 else match[0]
