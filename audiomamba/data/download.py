"""Archives from the web: fetched in as many goes as it takes, checked, unpacked without trust."""

from __future__ import annotations

import gzip
import http.client
import lzma
import os
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from email.message import Message
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from tqdm import tqdm

from audiomamba import files

ATTEMPTS = 5
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 60.0
_BLOCK_BYTES = 1 << 18
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
)


class _BrokenError(Exception):
    """A connection that may work the next time."""


def download(
    url: str, path: str | os.PathLike[str], *, sha256: str | None = None, progress: bool = True
) -> Path:
    """Fetch a file, going on where an earlier attempt broke off.

    What has come so far lies in PATH.part, and beside it, in PATH.part.etag, what tells whether the
    server's file is still the same. If that has changed, or the server sends whole files only, the
    download starts over. One process at a time may fetch a path.

    Args:
        url: http or https.
        path: The file, which appears when it is complete and checked. One that is there already is
            checked and kept.
        sha256: Of the file, in hexadecimal.
        progress: Show a bar, on a terminal.

    Returns:
        The path.

    Raises:
        ConnectionError: If the connection breaks `ATTEMPTS` times with nothing gained in between.
        OSError: If the server refuses, or there is too little room.
        ValueError: If the address is not http, or the checksum is wrong.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is not an http or https address")
    if path.exists():
        if sha256 and (found := files.sha256(path)) != sha256:
            raise ValueError(f"{path} has sha256 {found}, not {sha256}; remove it to fetch it anew")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tag = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.etag")
    shown = progress and sys.stderr.isatty()
    with tqdm(desc=path.name, unit="B", unit_scale=True, disable=not shown, leave=False) as bar:
        _persist(url, part, tag, bar, checked=sha256 is not None)
    if sha256 and (found := files.sha256(part)) != sha256:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise ValueError(
            f"{url} sent a file with sha256 {found}, not {sha256}; it was removed: try again, and "
            "if the sum stays wrong do not use that file"
        )
    os.replace(part, path)
    tag.unlink(missing_ok=True)
    return path


def _persist(url: str, part: Path, tag: Path, bar: Any, *, checked: bool) -> None:
    farthest, broken = _size(part), 0
    while True:
        try:
            return _fetch_rest(url, part, tag, bar, checked=checked)
        except _BrokenError as error:
            size = _size(part)
            broken = 1 if size > farthest else broken + 1
            farthest = max(farthest, size)
            if broken >= ATTEMPTS:
                kept = f"; what has come, {tqdm.format_sizeof(size, 'B')}, is kept" if size else ""
                raise ConnectionError(
                    f"{url} failed {ATTEMPTS} times, last with {error}{kept}; try again later"
                ) from error
        time.sleep(PAUSE_SECONDS * broken)


def _fetch_rest(url: str, part: Path, tag: Path, bar: Any, *, checked: bool) -> None:
    """Append what is missing to a partial file, or write it from the start."""
    request = urllib.request.Request(url, headers={"User-Agent": "audiomamba"})
    have, validator = _size(part), tag.read_text() if tag.exists() else ""
    if have and (validator or checked):
        request.add_header("Range", f"bytes={have}-")
        if validator:
            request.add_header("If-Range", validator)
    try:
        with _open(request) as response:
            headers, start = response.headers, have if response.status == 206 else 0
            now = _validator(headers)
            if start and (
                not headers.get("Content-Range", "").startswith(f"bytes {have}-")
                or (validator and now and now != validator)
            ):
                part.unlink()  # the server takes no notice of If-Range
                raise _BrokenError("a piece of another file")
            length = headers["Content-Length"]
            total = start + int(length) if length else None
            if total is not None:
                _check_room(part, total - have)
            bar.total, bar.n, bar.initial = total, start, start
            with open(part, "ab" if start else "wb") as file:
                if not start:
                    tag.write_text(now)
                for block in _blocks(response):
                    file.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:
            reply = f"{error.code} {error.reason}"
            raise OSError(f"{url} cannot be had, the server answers {reply}") from error
        total = have if error.headers["Content-Range"] == f"bytes */{have}" else None
        if total is None:
            part.unlink()
            raise _BrokenError("a file shorter than before") from error
    if total is not None and _size(part) < total:
        raise _BrokenError(f"an end after {_size(part)} of {total} bytes")


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            request, timeout=TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        if error.code not in _TRANSIENT:
            raise
        error.close()
        raise _BrokenError(f"{error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(str(getattr(error, "reason", error))) from error
    return response


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(_BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(str(error)) from error
        if not block:
            return
        yield block


def _validator(headers: Message) -> str:
    """Return what changes when the file does, as If-Range takes it (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        takes, has = (tqdm.format_sizeof(size, "B") for size in (needed, free))
        raise OSError(
            f"{path} takes {takes} more and its disk has {has} free; "
            "free some space or name another folder"
        )


def extract(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    keep: Callable[[PurePosixPath], bool] = lambda path: True,
    limit_bytes: int = 16 << 30,
) -> Path:
    """Unpack a tar or zip archive into a new folder, which appears when it is complete.

    Only regular files are written, with plain permissions. An archive with anything else in it, a
    link or a device, or with a name that leads outside the folder, is refused whole.

    Args:
        archive: Tar, compressed in any way that Python reads, or zip.
        folder: Must not exist, or be empty.
        keep: Says of a path in the archive whether to unpack it.
        limit_bytes: Of what is unpacked, together.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds anything.
        ValueError: If the archive is damaged, hostile or too large.
    """
    archive, folder = Path(archive), Path(folder)
    check_new(folder)
    files.sweep(folder)
    temporary = files.part_of(folder)
    temporary.mkdir(parents=True)
    left = limit_bytes
    try:
        with closing(_members(archive)) as members:
            for member in members:
                _check_member(archive, member)
                path = PurePosixPath(member.name)
                if member.kind == "folder" or not keep(path):
                    continue
                left -= member.size
                if left < 0:
                    raise ValueError(f"{archive} holds more than {limit_bytes} bytes")
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, open(temporary / path, "wb") as file:
                    shutil.copyfileobj(source, file, _BLOCK_BYTES)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except _DAMAGE as error:
        raise ValueError(f"{archive} is damaged, or not a tar or zip archive: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_new(folder: Path) -> None:
    """Raise FileExistsError if a folder holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; remove it or name another folder")


class _Member(NamedTuple):
    name: str
    kind: str
    size: int
    open: Callable[[], Any]


def _members(archive: Path) -> Generator[_Member, None, None]:
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for entry in tar:
                kind = "file" if entry.isreg() else "folder" if entry.isdir() else "link or device"
                yield _Member(entry.name, kind, entry.size, partial(tar.extractfile, entry))
    else:
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                mode = stat.S_IFMT(info.external_attr >> 16)
                regular = mode in (0, stat.S_IFREG)
                kind = "folder" if info.is_dir() else "file" if regular else "link or device"
                yield _Member(info.filename, kind, info.file_size, partial(zipped.open, info))


def _check_member(archive: Path, member: _Member) -> None:
    path = PureWindowsPath(member.name)  # knows the separators and roots of both systems
    if path.anchor or ".." in path.parts:
        raise ValueError(f"{archive} is not safe: {member.name!r} leads outside the folder")
    if member.kind not in ("file", "folder"):
        raise ValueError(f"{archive} is not safe: {member.name!r} is a {member.kind}")
