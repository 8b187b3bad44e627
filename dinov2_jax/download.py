"""Files from the network into a cache: resumed where they stopped, placed when whole."""

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import BinaryIO, TextIO

from dinov2_jax import errors, meter

try:
    import fcntl
except ImportError:  # not on Windows: there, two processes may disturb each other
    fcntl = None

CHUNK = 2**20  # bytes
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP states that may be over at the next try."""


NOTED = {"url", "if_range", "start", "total"}
"""What is written down of the answer that a part was begun with."""


class _Again(Exception):
    """This attempt failed in a way that the next one may not."""


def cache() -> pathlib.Path:
    """Folder of downloads: the variable DINOV2_JAX_CACHE, or ~/.cache/dinov2_jax."""
    named = os.environ.get("DINOV2_JAX_CACHE")
    return pathlib.Path(named or "~/.cache/dinov2_jax").expanduser()


def fetch(
    url: str,
    folder: pathlib.Path | None = None,
    *,
    sha256: str = "",
    timeout: float = 30.0,
    tries: int = 5,
    pause: float = 1.0,
    out: TextIO | None = None,
) -> pathlib.Path:
    """The file of an address, downloaded unless it is in the folder already.

    Bytes gather in NAME.part, which a later call continues if the server still has the
    same file; of several processes one downloads and the others wait.

    Args:
        url: http or https.
        folder: where to keep it; None for `cache()`.
        sha256: first hexadecimal digits of the file's sum; "" checks the size alone.
        timeout: seconds without a byte after which a connection is given up, > 0.
        tries: attempts in a row without a new byte before giving up, >= 1.
        pause: seconds before the second attempt; doubled for each one after.
        out: where to tell progress; None for standard error.
    Raises: ValueError that says what failed, what is kept and what else can be done.
    """
    folder = cache() if folder is None else folder
    name = pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name
    target, part = folder / name, folder / f"{name}.part"
    if target.is_file():
        return target
    shown = meter.Meter(name, out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(part, shown) as file:
            try:
                if not target.is_file():  # else another process has just placed it
                    sized = _complete(url, file, part, shown, timeout, tries, pause)
                    _verify(file, part.stem, sized, sha256, shown)
                    os.fsync(file.fileno())
                    os.replace(part, target)
            finally:
                if target.is_file() or not _size(file):
                    for left in (part, _note(part)):
                        left.unlink(missing_ok=True)
    except OSError as error:
        raise errors.InputError(
            f"{url} cannot be kept in {folder}: {error}. Choose another folder by the "
            "variable DINOV2_JAX_CACHE."
        ) from error
    return target


def _note(part: pathlib.Path) -> pathlib.Path:
    """Beside a part, what the server said of the file that it is a part of."""
    return part.with_name(f"{part.name}.json")


@contextlib.contextmanager
def _alone(part: pathlib.Path, shown: meter.Meter) -> Iterator[BinaryIO]:
    """The part, open to append, while no other process has it."""
    while True:
        with part.open("a+b") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    shown.say(f"{part.name}: another process downloads it; waiting")
                    fcntl.flock(file, fcntl.LOCK_EX)
            # Who had it before may have placed or removed it.
            if part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat()):
                yield file  # closing it ends the lock
                return


def _complete(
    url: str,
    file: BinaryIO,
    part: pathlib.Path,
    shown: meter.Meter,
    timeout: float,
    tries: int,
    pause: float,
) -> bool:
    """Receive until the part is whole; attempts that bring new bytes do not count.

    Returns: whether the server has told the size.
    """
    failed, most = 0, _size(file)
    while True:
        try:
            return _receive(url, file, part, shown, timeout)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            last = error.code not in PASSING
        except urllib.error.URLError as error:
            reason, last = str(error.reason), False
        except (_Again, ConnectionError, TimeoutError, http.client.HTTPException) as e:
            reason, last = str(e) or type(e).__name__, False
        size = _size(file)
        failed, most = (1, size) if size > most else (failed + 1, most)
        if last or failed >= tries:
            raise errors.InputError(
                f"{url} cannot be downloaded ({reason}); {size} bytes are kept in "
                f"{part} and continued by the next call. Check the network, or get the "
                "file another way and give its path."
            )
        wait = pause * 2 ** (failed - 1)
        shown.say(f"{part.stem}: {reason}; trying again in {wait:.0f} s")
        time.sleep(wait)


def _receive(
    url: str, file: BinaryIO, part: pathlib.Path, shown: meter.Meter, timeout: float
) -> bool:
    """One attempt to bring the part to its full size.

    Returns: whether the server has told that size.
    Raises: _Again if it ended early or must begin anew; what urllib raises.
    """
    have, known = _size(file), _read_note(part, url)
    headers = {"User-Agent": "dinov2-jax", "Accept-Encoding": "identity"}
    if have and not (known and known["if_range"]):
        file.truncate(0)  # nothing tells whether the server has the same file still
        have = 0
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known["if_range"]}
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # it was whole, only not placed yet
        file.truncate(0)
        raise _Again("the server has less than the part; starting anew") from error
    with answer:
        now = _describe(answer, url)
        if answer.status == 206:
            # What an answer does not repeat has not changed: that was the condition.
            now = {k: known[k] if v in ("", None) else v for k, v in now.items()}
            if now != known | {"start": have}:
                file.truncate(0)
                raise _Again("the file has changed on the server; starting anew")
        else:
            if have:
                shown.say(f"{part.stem}: the server sends it whole; starting anew")
            file.truncate(0)
            _note(part).write_text(json.dumps(now), encoding="utf-8")
        _store(answer, file, part, now["total"], shown)
    return now["total"] is not None


def _read_note(part: pathlib.Path, url: str) -> dict:
    """What the server said when the part was begun; {} if nothing usable is known."""
    try:
        known = json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(known, dict) and set(known) == NOTED and known["url"] == url
    return known if ours else {}


def _describe(answer: http.client.HTTPResponse, url: str) -> dict:
    """What an answer's head says: total size, first byte, and how to ask for the same.

    Raises: ValueError if it is a web page.
    """
    head = answer.headers
    if head.get_content_type() == "text/html":
        raise errors.InputError(
            f"{url} answers with a web page, not a file; is there a login page or proxy "
            "in between?"
        )
    start, total = 0, head.get("Content-Length")
    if answer.status == 206:
        whole = head.get("Content-Range", "").removeprefix("bytes ")
        place, _, total = whole.partition("/")
        start = place.partition("-")[0]
    strong = head.get("ETag", "")
    if not strong or strong.startswith("W/"):  # a weak one does not vouch for bytes
        strong = head.get("Last-Modified", "")
    return {
        "url": url,
        "if_range": strong,
        "start": int(start) if str(start).isdigit() else -1,
        "total": int(total) if str(total).isdigit() else None,
    }


def _store(
    answer: http.client.HTTPResponse,
    file: BinaryIO,
    part: pathlib.Path,
    total: int | None,
    shown: meter.Meter,
) -> None:
    """Append an answer's body to the part.

    Raises: _Again if it ends before the size that was announced; OSError if it cannot
        fit on the disk.
    """
    size = _size(file)
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - size > free:
        raise errors.FileError(f"{total - size} bytes are to come and {free} are free")
    shown.begin(size, total)
    while True:
        try:
            data = answer.read1(CHUNK)
        except OSError as error:  # of the network; one of the disk is another matter
            raise _Again(str(error) or type(error).__name__) from error
        if not data:
            break
        file.write(data)
        size += len(data)
        shown.update(size)
    file.flush()
    if total is not None and size != total:
        raise _Again(f"the connection ended at {size} of {total} bytes")


def _size(file: BinaryIO) -> int:
    """Bytes in an open file."""
    return file.seek(0, os.SEEK_END)


def _verify(
    file: BinaryIO, name: str, sized: bool, sha256: str, shown: meter.Meter
) -> None:
    """Check the sum and say what was checked; a wrong file is emptied.

    Raises: ValueError if the sum begins otherwise.
    """
    size = _size(file)
    if not sha256:
        checked = "the size is as announced" if sized else "no size was announced"
        shown.say(f"{name}: {size} bytes; {checked}, no checksum is known")
        return
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256.lower()):
        file.truncate(0)
        raise errors.InputError(
            f"{name} has the SHA-256 {found}, not {sha256}...; it was damaged on its "
            "way or replaced. It is removed; try again."
        )
    shown.say(f"{name}: {size} bytes, SHA-256 as expected")
