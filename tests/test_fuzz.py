"""Random input: the one kind of error that is promised, or a sound result."""

import io
import os
import string

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dinov2_jax import config, values
from dinov2_jax.data import decode, sources

FIELDS = dict(config.fields(config.default()))
LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.lists(inner, max_size=3),
    max_leaves=5,
)
quick = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
)


@quick
@given(st.text(max_size=40) | st.text("=.()[],'-+_0123456789aeinf", max_size=40))
def test_any_override_is_refused_in_one_line_or_does_nothing_wrong(text):
    check_override(text)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of text that is nearly Python
@quick
@given(
    st.sampled_from(sorted(FIELDS)),
    LITERALS.map(repr) | st.text(max_size=12) | st.sampled_from(["true", "1e999", "٣"]),
)
def test_any_value_of_a_field_keeps_its_type_or_is_refused(name, text):
    check_override(f"{name}={text}")


def check_override(text: str) -> None:
    """An override is refused by ConfigError, or leaves a config of the same types."""
    c = config.default()
    try:
        config.override(c, text)
    except config.ConfigError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 400
        assert dict(config.fields(c)) == FIELDS
        return
    name = text.partition("=")[0]
    changed = dict(config.fields(c))
    assert type(changed[name]) is type(FIELDS[name])
    if isinstance(changed[name], tuple):
        assert {type(x) for x in changed[name]} == {type(FIELDS[name][0])}
    assert changed | {name: FIELDS[name]} == FIELDS
    assert isinstance(values.refusal(name, changed[name]), str)
    config.to_json(c)


@quick
@given(
    st.builds(
        str.__add__,
        st.sampled_from(["", "folder:", "tar:", "arrayrecord:", "demo:", "fodler:"]),
        st.text(max_size=20) | st.text(string.punctuation + "0a", max_size=20),
    )
)
@example("folder:a\nb")
def test_any_spec_opens_or_is_refused(spec):
    # A real folder, such as "/" or "..", would be walked from end to end.
    places = [part.partition(":")[2].split("@")[0] for part in spec.split(";")]
    assume(not any(os.path.isdir(os.path.expanduser(p.strip())) for p in places))
    try:
        source = sources.open_source(spec)
    except (ValueError, OSError) as error:
        assert str(error)
    else:
        assert len(source) > 0


def encoded(kind: str, **options) -> bytes:
    """A small picture as a file."""
    rows, columns = np.mgrid[:24, :31]
    pixels = np.stack([rows * 9, columns * 8, rows * columns % 256], -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "png": encoded("PNG"),
    "webp": encoded("WEBP"),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF", compression="tiff_lzw"),
    "bmp": encoded("BMP"),
}


def check_decoding(data: bytes) -> None:
    """Bytes are refused by DecodeError, or give an RGB image of a sane size."""
    try:
        image = decode.decode(data, max_pixels=1 << 16)
    except decode.DecodeError as error:
        assert str(error)
        return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= 1 << 16


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged metadata
@quick
@given(st.sampled_from([b"", *(f[:16] for f in FILES.values())]), st.binary())
def test_any_bytes_are_an_image_or_are_refused(start, data):
    check_decoding(start + data)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged metadata
@pytest.mark.parametrize("kind", FILES)
@settings(quick, max_examples=60)
@given(st.data())
def test_any_change_of_a_file_is_an_image_or_is_refused(kind, data):
    changed = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed) - 1))
        end = min(start + data.draw(st.integers(0, 6)), len(changed))
        changed[start:end] = data.draw(st.binary(max_size=6))
        changed = changed or bytearray(b"\0")
    check_decoding(bytes(changed))
