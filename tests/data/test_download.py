"""A file comes whole from a server that misbehaves, or not at all."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiomamba.data import download as module
from audiomamba.data.download import download
from tests.data.contents import CONTENT, names

OTHER = np.random.default_rng(1).bytes(10_000)


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Site:
    """A server of one file that can be told to misbehave."""

    url: str = ""
    content: bytes = CONTENT
    validators: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    statuses: list[int] = field(default_factory=list)  # of the next requests
    breaks: list[int] = field(default_factory=list)  # bytes before the next connections break
    ranges: bool = True
    if_range: bool = True
    chunked: bool = False
    asked: list[dict[str, str]] = field(default_factory=list)

    def change(self, content: bytes) -> None:
        self.content, self.validators = content, {"ETag": '"two"'}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(handler.headers))
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        start, total = 0, len(self.content)
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        same = handler.headers.get("If-Range") in (None, *self.validators.values())
        if wanted and self.ranges and (same or not self.if_range):
            start = int(wanted[1])
        if start >= total:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{total}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        for name, value in self.validators.items():
            handler.send_header(name, value)
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", str(total - start))
        handler.end_headers()
        body = self.content[start:]
        sent = body[: self.breaks.pop(0)] if self.breaks else body
        if self.chunked:
            handler.wfile.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n" if sent else b"")
            handler.wfile.write(b"0\r\n\r\n" if sent == body else b"")
        else:
            handler.wfile.write(sent)
        handler.close_connection = True


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.server.site.answer(self)  # type: ignore[attr-defined]

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def site(server: Any, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    server.site = Site(f"http://127.0.0.1:{server.server_port}/file")
    return server.site


def interrupt(site: Site, path: Path, size: int) -> None:
    """Leave a partial file, as an interrupted run does."""
    site.breaks = [size] + [0] * module.ATTEMPTS
    with pytest.raises(ConnectionError):
        download(site.url, path, sha256=sum_of(CONTENT))
    assert path.with_name(f"{path.name}.part").stat().st_size == size
    site.breaks, site.asked = [], []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_whole_file_comes_once(site: Site, tmp_path: Path, chunked: bool) -> None:
    site.chunked = chunked
    path = tmp_path / "new" / "file"
    for _ in range(2):
        assert download(site.url, path, sha256=sum_of(CONTENT)) == path
        assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file"]
    assert len(site.asked) == 1
    assert "Range" not in site.asked[0]


@pytest.mark.parametrize(
    ("validators", "sent"),
    [
        ({"ETag": '"one"'}, '"one"'),
        ({"ETag": '"one"', "Last-Modified": "Mon"}, '"one"'),
        ({"ETag": 'W/"one"', "Last-Modified": "Mon"}, "Mon"),
        ({"Last-Modified": "Mon"}, "Mon"),
    ],
)
def test_a_broken_download_goes_on_where_it_was(
    site: Site, tmp_path: Path, validators: dict[str, str], sent: str
) -> None:
    site.validators = validators
    interrupt(site, tmp_path / "file", 4000)
    site.breaks = [1000]
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [asked["Range"] for asked in site.asked] == ["bytes=4000-", "bytes=5000-"]
    assert {asked["If-Range"] for asked in site.asked} == {sent}
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("validators", [{}, {"ETag": 'W/"one"'}])
@pytest.mark.parametrize("checked", [False, True])
def test_what_may_have_changed_goes_on_only_if_it_is_checked(
    site: Site, tmp_path: Path, validators: dict[str, str], checked: bool
) -> None:
    site.validators = validators
    interrupt(site, tmp_path / "file", 4000)
    download(site.url, tmp_path / "file", sha256=sum_of(CONTENT) if checked else None)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [asked.get("Range") for asked in site.asked] == ["bytes=4000-" if checked else None]


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    interrupt(site, tmp_path / "file", 4000)
    site.ranges = False
    site.breaks = [3000]
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(site.asked) == 2


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("content", [OTHER, OTHER[:3000], OTHER * 2])
def test_a_file_that_changed_starts_over(
    site: Site, tmp_path: Path, content: bytes, if_range: bool
) -> None:
    interrupt(site, tmp_path / "file", 4000)
    site.change(content)
    site.if_range = if_range
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content


def test_a_file_that_changes_while_it_comes_starts_over(site: Site, tmp_path: Path) -> None:
    site.breaks = [6000]
    answer = site.answer

    def change_then_answer(handler: BaseHTTPRequestHandler) -> None:
        if site.asked:
            site.change(OTHER)
        answer(handler)

    site.answer = change_then_answer  # type: ignore[method-assign]
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == OTHER


def test_a_file_that_was_complete_needs_no_byte_more(site: Site, tmp_path: Path) -> None:
    interrupt(site, tmp_path / "file", 4000)
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [asked["Range"] for asked in site.asked] == ["bytes=10000-"]
    assert names(tmp_path) == ["file"]


@given(
    breaks=st.lists(st.integers(0, 4000), max_size=6),
    ranges=st.booleans(),
    chunked=st.booleans(),
    validator=st.sampled_from([{}, {"ETag": '"one"'}, {"Last-Modified": "Mon"}]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_file_comes_whole_or_not_at_all(
    server: Any,
    tmp_path_factory: pytest.TempPathFactory,
    breaks: list[int],
    ranges: bool,
    chunked: bool,
    validator: dict[str, str],
) -> None:
    url = f"http://127.0.0.1:{server.server_port}/file"
    server.site = Site(url, validators=validator, breaks=breaks, ranges=ranges, chunked=chunked)
    path = tmp_path_factory.mktemp("any") / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAUSE_SECONDS", 0.0)
        try:
            download(url, path)
        except ConnectionError:
            assert not path.exists()
            server.site.breaks = []
            download(url, path)
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_names_both_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    wanted = sum_of(OTHER)
    with pytest.raises(ValueError, match=f"sha256 {sum_of(CONTENT)}, not {wanted}; it was removed"):
        download(site.url, tmp_path / "file", sha256=wanted)
    assert names(tmp_path) == []
    (tmp_path / "file").write_bytes(CONTENT)
    with pytest.raises(ValueError, match=f"file has sha256 {sum_of(CONTENT)}, not {wanted}; remov"):
        download(site.url, tmp_path / "file", sha256=wanted)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_a_refusal_is_told_and_not_repeated(site: Site, tmp_path: Path, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(OSError, match=rf"{site.url} cannot be had, the server answers {status} \w"):
        download(site.url, tmp_path / "file")
    assert len(site.asked) == 1
    assert names(tmp_path) == []


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429, 500]
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_connection_that_keeps_breaking_ends_with_what_has_come(
    site: Site, tmp_path: Path
) -> None:
    site.breaks = [4000, 100, *[0] * 9]
    message = r"failed 5 times, last with an end after 4100 of 10000 bytes; what has come, 4.10kB,"
    with pytest.raises(ConnectionError, match=message):
        download(site.url, tmp_path / "file")
    assert len(site.asked) == 2 + 4  # a gain starts the count anew
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:4100]


def test_nobody_there_is_told(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"failed 5 times, last with .*refused; try again"):
        download("http://127.0.0.1:9/file", tmp_path / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "file"])
def test_only_the_web_is_fetched_from(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="is not an http or https address"):
        download(url, tmp_path / "file")


def test_too_little_room_is_told_before_the_download(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(site, tmp_path / "file", 4000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5999))
    with pytest.raises(OSError, match=r"takes 6.00kB more and its disk has 6.00kB free; free some"):
        download(site.url, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:4000]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6000))
    download(site.url, tmp_path / "file")


def test_a_full_disk_is_no_broken_connection(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocks(response: Any) -> Iterator[bytes]:
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_blocks", blocks)
    with pytest.raises(OSError, match="No space left on device"):
        download(site.url, tmp_path / "file")
    assert len(site.asked) == 1


@pytest.mark.parametrize("progress", [True, False])
def test_progress_shows_on_a_terminal_alone(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    progress: bool,
) -> None:
    download(site.url, tmp_path / "one")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    download(site.url, tmp_path / "two", progress=progress)
    assert ("two:" in capsys.readouterr().err) == progress
