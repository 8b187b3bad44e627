"""Names as text: one printable line each, from which the name is had again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2_jax.escaping import escaped, normalized, shown, unescaped


@pytest.mark.parametrize(
    "name, text",
    [
        (b"cat.jpg", "cat.jpg"),
        ("été 日本\u3042.jpg".encode(), "été 日本\u3042.jpg"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
        (b"two\nlines\t.jpg", r"two\nlines\t.jpg"),
        (b"\x1b[2J.jpg", r"\x1b[2J.jpg"),
        ("\u202egpj.exe".encode(), r"\u202egpj.exe"),
        ("\x85.jpg".encode(), r"\u0085.jpg"),
        (b"\x85.jpg", r"\x85.jpg"),
        (rb"a\nb", r"a\\nb"),
        ("👩\u200d🚀".encode(), "👩\u200d🚀"),
        # As os.fsdecode spells sound UTF-8 where the locale is ASCII.
        ("caf\udcc3\udca9.jpg", "café.jpg"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_name_is_escaped_only_where_it_must_be(name, text):
    assert escaped(name) == text
    assert unescaped(text) == (name if isinstance(name, str) else _text(name)) or (
        name == "caf\udcc3\udca9.jpg"
    )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@given(st.binary())
def test_every_name_comes_back_and_is_one_printable_line(name):
    text = escaped(name)
    assert unescaped(text).encode("utf-8", "surrogateescape") == name
    assert text.replace("\u200c", "").replace("\u200d", "").isprintable()
    assert len(text.splitlines()) <= 1
    text.encode("utf-8")


@given(st.text())
def test_what_is_shown_is_one_line_whatever_it_was(text):
    line = shown(text)
    assert len(line.splitlines()) <= 1
    line.encode("utf-8")
    assert shown(line) == line


def test_classes_are_equal_however_their_accents_are_spelt():
    assert normalized("cafe\u0301".encode()) == normalized("caf\u00e9") == "caf\u00e9"
