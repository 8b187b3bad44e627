"""Downloads from a server on this machine that does what servers do at their worst."""

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dinov2_jax import download, meter

DATA = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
OTHER = DATA[::-1][:-1000]


class Server(http.server.ThreadingHTTPServer):
    """Serves `data` under any path; `script` has one fault for each request to come.

    A fault is a number of bytes after which the connection drops, `hang` or a state of
    HTTP; afterwards all goes well.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.script, self.asked = DATA, '"one"', [], []
        self.ranges = self.lengths = True
        self.kind, self.modified = "application/octet-stream", ""
        self.free = threading.Event()  # ends what hangs

    @property
    def url(self) -> str:
        """Address of a file."""
        return f"http://127.0.0.1:{self.server_port}/dir/weights.pth?version=1"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request by the server's script."""

    def log_message(self, *arguments) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The data, or the part from a byte on if that is asked for and unchanged."""
        s = self.server
        s.asked.append(dict(self.headers))
        fault = s.script.pop(0) if s.script else None
        if fault == "hang":
            s.free.wait(30)
            return
        if isinstance(fault, str):
            self.send_error(int(fault))
            return
        start, wanted = 0, self.headers.get("Range")
        unchanged = self.headers.get("If-Range") in (s.etag, s.modified)
        if wanted and unchanged and s.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(s.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(s.data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", s.kind)
        if s.etag:
            self.send_header("ETag", s.etag)
        if s.modified:
            self.send_header("Last-Modified", s.modified)
        if start:
            whole = f"bytes {start}-{len(s.data) - 1}/{len(s.data)}"
            self.send_header("Content-Range", whole)
        if s.lengths:
            self.send_header("Content-Length", str(len(s.data) - start))
        self.end_headers()
        body = s.data[start:]
        self.wfile.write(body if fault is None else body[: abs(fault)])
        if fault is not None and fault < 0:
            self.wfile.flush()
            s.free.wait(30)


@pytest.fixture
def server(monkeypatch):
    """A running server, asked without a proxy."""
    monkeypatch.setenv("no_proxy", "*")
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.free.set()
    made.shutdown()
    thread.join()
    made.server_close()


class Terminal(io.StringIO):
    """Takes text as a terminal does."""

    def isatty(self) -> bool:
        return True


def fetch(server: Server, folder, out: io.StringIO | None = None, **options):
    """`download.fetch` without long waits; returns the path and what was said."""
    out = io.StringIO() if out is None else out
    options = {"timeout": 10.0, "pause": 0.0} | options
    path = download.fetch(server.url, folder, out=out, **options)
    return path, out.getvalue()


def left(folder) -> set[str]:
    """Names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


def test_a_file_comes_once_and_is_placed_whole(server, tmp_path):
    path, said = fetch(server, tmp_path / "new" / "cache")
    assert path.read_bytes() == DATA and left(path.parent) == {"weights.pth"}
    assert "3000000 bytes; the size is as announced, no checksum is known" in said
    assert fetch(server, path.parent) == (path, "")
    assert len(server.asked) == 1


def test_a_dropped_connection_goes_on_where_it_stopped(server, tmp_path):
    server.script = [1_000_000, 500_000, 0, 700_000]
    path, said = fetch(server, tmp_path)
    assert path.read_bytes() == DATA and left(tmp_path) == {"weights.pth"}
    ranges = [head.get("Range") for head in server.asked]
    assert ranges[0] is None
    assert ranges[1:] == [
        f"bytes={n}-" for n in (1_000_000, 1_500_000, 1_500_000, 2_200_000)
    ]
    assert {head.get("If-Range") for head in server.asked[1:]} == {'"one"'}
    assert "the connection ended at 1000000 of 3000000 bytes; trying again" in said


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, tmp_path):
    server.script = [1_000_000, *["503"] * 2]
    with pytest.raises(
        ValueError, match="HTTP 503.*1000000 bytes are kept in"
    ) as error:
        fetch(server, tmp_path, tries=3)
    assert "weights.pth.part" in str(error.value)
    assert left(tmp_path) == {"weights.pth.part", "weights.pth.part.json"}
    path, _ = fetch(server, tmp_path)
    assert path.read_bytes() == DATA and left(tmp_path) == {"weights.pth"}
    assert server.asked[-1]["Range"] == "bytes=1000000-"


def test_new_bytes_start_the_count_of_attempts_anew(server, tmp_path):
    server.script = [100_000] * 20
    path, _ = fetch(server, tmp_path, tries=2)
    assert path.read_bytes() == DATA and len(server.asked) == 21


def test_a_server_that_ignores_ranges_sends_it_whole(server, tmp_path):
    server.ranges, server.script = False, [1_000_000, 2_000_000]
    path, said = fetch(server, tmp_path)
    assert path.read_bytes() == DATA
    assert said.count("the server sends it whole; starting anew") == 2


def test_a_server_that_ignores_ranges_and_always_drops_ends(server, tmp_path):
    server.ranges, server.script = False, [1_000_000] * 50
    with pytest.raises(ValueError, match="ended at 1000000 of 3000000"):
        fetch(server, tmp_path, tries=3)
    assert len(server.asked) == 3


def test_a_file_that_changes_in_between_starts_anew(server, tmp_path):
    server.script = [1_000_000, "500"]
    with pytest.raises(ValueError, match="HTTP 500"):
        fetch(server, tmp_path, tries=2)
    server.data, server.etag = OTHER, '"two"'
    path, _ = fetch(server, tmp_path)
    assert path.read_bytes() == OTHER


def test_a_change_that_the_server_itself_overlooks_is_met(server, tmp_path):
    server.modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    server.script = [1_000_000, "500"]
    with pytest.raises(ValueError, match="HTTP 500"):
        fetch(server, tmp_path, tries=2)
    server.data = OTHER  # of another size, under the same tag
    path, said = fetch(server, tmp_path)
    assert "the file has changed on the server; starting anew" in said
    assert path.read_bytes() == OTHER


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_tag_the_date_vouches_for_the_part(server, tmp_path, etag):
    server.etag, server.modified = etag, "Mon, 01 Jan 2024 00:00:00 GMT"
    server.script = [1_000_000]
    assert fetch(server, tmp_path)[0].read_bytes() == DATA
    assert server.asked[1]["If-Range"] == server.modified
    assert server.asked[1]["Range"] == "bytes=1000000-"


def test_a_part_that_nothing_vouches_for_is_not_continued(server, tmp_path):
    server.etag, server.script = "", [1_000_000]
    assert fetch(server, tmp_path)[0].read_bytes() == DATA
    assert "Range" not in server.asked[1]


@pytest.mark.parametrize("note", [None, "{", "[]", '{"url": "http://elsewhere"}'])
def test_a_part_of_unknown_origin_is_not_continued(server, tmp_path, note):
    (tmp_path / "weights.pth.part").write_bytes(b"something else")
    if note is not None:
        (tmp_path / "weights.pth.part.json").write_text(note)
    assert fetch(server, tmp_path)[0].read_bytes() == DATA
    assert "Range" not in server.asked[0]


@pytest.mark.parametrize("have", [len(DATA), len(DATA) + 5])
def test_a_part_that_was_whole_is_placed_and_a_longer_one_starts_anew(
    server, tmp_path, have
):
    known = {"url": server.url, "if_range": '"one"', "start": 0, "total": len(DATA)}
    (tmp_path / "weights.pth.part.json").write_text(json.dumps(known))
    (tmp_path / "weights.pth.part").write_bytes((DATA + b"extra")[:have])
    path, _ = fetch(server, tmp_path)
    assert path.read_bytes() == DATA and left(tmp_path) == {"weights.pth"}
    assert len(server.asked) == (1 if have == len(DATA) else 2)


def test_a_server_that_hangs_is_given_up_and_asked_again(server, tmp_path):
    server.script = ["hang", -1_000_000]
    path, said = fetch(server, tmp_path, timeout=0.3)
    assert path.read_bytes() == DATA
    assert said.count("timed out; trying again") == 2
    assert server.asked[2]["Range"] == "bytes=1000000-"


@pytest.mark.parametrize("state", ["404", "403"])
def test_a_file_that_is_not_there_is_an_error_at_once(server, tmp_path, state):
    server.script = [state]
    with pytest.raises(ValueError, match=f"HTTP {state} .*give its path"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1 and not left(tmp_path)


def test_a_web_page_is_no_file(server, tmp_path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="answers with a web page"):
        fetch(server, tmp_path)
    assert not left(tmp_path)


def test_without_a_network_the_error_says_what_to_do(tmp_path):
    offline = Server()
    offline.server_close()  # nothing listens there any more
    with pytest.raises(ValueError, match="refused.*Check the network") as error:
        fetch(offline, tmp_path, tries=2)
    assert "0 bytes are kept" in str(error.value) and not left(tmp_path)
    with pytest.raises(ValueError, match="cannot be downloaded"):
        download.fetch("http://no.such.host.invalid/a", tmp_path, tries=1)


def test_a_size_that_nobody_announced_is_told(server, tmp_path):
    server.lengths = False
    path, said = fetch(server, tmp_path)
    assert path.read_bytes() == DATA and "no size was announced" in said


def test_a_checksum_is_checked_where_it_is_known(server, tmp_path):
    expected = hashlib.sha256(DATA).hexdigest()
    path, said = fetch(server, tmp_path, sha256=expected[:8].upper())
    assert "SHA-256 as expected" in said
    path.unlink()
    with pytest.raises(ValueError, match=f"SHA-256 {expected}, not 00000000"):
        fetch(server, tmp_path, sha256="00000000")
    assert not left(tmp_path)


def test_two_at_once_download_it_once(server, tmp_path):
    server.script = [-1_000_000]  # the first waits in the middle, for the second
    said, made = [io.StringIO(), io.StringIO()], []

    def get(out: io.StringIO) -> None:
        made.append(fetch(server, tmp_path, out)[0])

    threads = [threading.Thread(target=get, args=(out,)) for out in said]
    threads[0].start()
    part = tmp_path / "weights.pth.part"
    while not (server.asked and part.is_file()):
        time.sleep(0.01)
    threads[1].start()
    while "another process downloads it" not in said[1].getvalue():
        time.sleep(0.01)
    server.free.set()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == DATA for path in made] == [True, True]
    assert len(server.asked) == 2 and left(tmp_path) == {"weights.pth"}


def test_a_folder_that_takes_no_file_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be kept in .*DINOV2_JAX_CACHE"):
        fetch(server, tmp_path / "file")


def test_a_disk_that_is_too_small_is_told_before_it_fills(
    server, tmp_path, monkeypatch
):
    free = download.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: free)
    with pytest.raises(ValueError, match="3000000 bytes are to come and 10 are free"):
        fetch(server, tmp_path)


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path / "here"))
    assert download.cache() == tmp_path / "here"
    monkeypatch.setenv("DINOV2_JAX_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache() == tmp_path / ".cache" / "dinov2_jax"


def test_lines_tell_share_and_time_left_and_a_terminal_gets_a_bar(server, tmp_path):
    _, said = fetch(server, tmp_path / "lines")
    shares = [line for line in said.splitlines() if "% of 3.0 MB" in line]
    assert 1 <= len(shares) <= 10 and all("left" in line for line in shares)
    assert "\r" not in said
    _, said = fetch(server, tmp_path / "bar", Terminal())
    assert "\r\x1b[K[########################] weights.pth  100% of 3.0 MB" in said


def test_a_size_of_nothing_known_has_no_share():
    out = io.StringIO()
    shown = meter.Meter("a", out)
    shown.begin(0, None)
    shown.update(5 * meter.STEP)
    assert "a  5.2 MB" in out.getvalue() and "%" not in out.getvalue()


def test_a_killed_download_goes_on(server, tmp_path):
    server.script = [-1_000_000]
    code = f"from dinov2_jax import download as d; d.fetch({server.url!r})"
    environment = os.environ | {"DINOV2_JAX_CACHE": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    part = tmp_path / "weights.pth.part"
    while not part.is_file() or part.stat().st_size < 500_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    server.free.set()
    path, _ = fetch(server, tmp_path)
    assert path.read_bytes() == DATA
    start = int(server.asked[1]["Range"].removeprefix("bytes=").removesuffix("-"))
    assert 500_000 <= start <= 1_000_000
