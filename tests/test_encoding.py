"""Text is UTF-8 whatever the locale: every place that opens a file says so."""

import ast
import pathlib
import re

import pytest

import dinov2_jax

ROOT = pathlib.Path(dinov2_jax.__file__).parent
MODE = re.compile(r"[rwax+t]+")
TEMPORARY = ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile")


def _mode(call: ast.Call, place: int, default: str) -> str | None:
    """The mode that a call opens a file in; None where it is not a literal."""
    given = call.args[place] if len(call.args) > place else None
    given = next((k.value for k in call.keywords if k.arg == "mode"), given)
    if given is None:
        return default
    return given.value if isinstance(given, ast.Constant) else None


def leaves_the_encoding_to_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text and does not say in which encoding."""
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if method else getattr(call.func, "id", "")
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in options:
        return False
    if name in ("read_text", "write_text"):
        # workdir.write_text(path, text) has its encoding inside.
        return method and ast.unparse(call.func.value) != "workdir"
    if name in ("open", "fdopen") and not (method and name == "open"):
        mode = _mode(call, 1, "r")
    elif name == "open":  # path.open("w"); others, as Image.open, take a file first
        mode = _mode(call, 0, "r")
    elif name in TEMPORARY:
        mode = _mode(call, 0, "w+b")
    elif name in ("TextIOWrapper", "FileHandler"):
        return True
    else:
        return any(
            isinstance(options.get(key), ast.Constant) and options[key].value is True
            for key in ("text", "universal_newlines")
        )
    return isinstance(mode, str) and bool(MODE.fullmatch(mode))


def places(source: str) -> list[int]:
    """Lines of the calls that leave it to the locale."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if leaves_the_encoding_to_the_locale(call)]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=str)
def test_every_text_file_is_opened_as_utf8(path):
    assert places(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    "code",
    [
        "path.read_text()",
        "path.write_text(text)",
        "open(path)",
        "open(path, 'a')",
        "open(path, mode='w+')",
        "path.open()",
        "path.open('a')",
        "os.fdopen(handle, 'w')",
        "tempfile.NamedTemporaryFile('w')",
        "subprocess.run(command, text=True)",
    ],
)
def test_the_test_sees_each_way_of_opening_a_text(code):
    assert places(code) == [1]
    assert places(f"{code[:-1]}, encoding='utf-8')".replace("(,", "(")) == []


@pytest.mark.parametrize(
    "code",
    [
        "open(path, 'rb')",
        "path.open('a+b')",
        "Image.open(file)",
        "av.open(path)",
        "tarfile.open(shard, 'r:', stream)",
        "tempfile.TemporaryFile()",
        "system.open(path, 'rb')",
    ],
)
def test_bytes_need_no_encoding(code):
    assert places(code) == []
