"""What was compiled once, in a folder of the user; a folder that cannot be written is no error."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from audiomamba.files import replacing

VARIABLE = "AUDIOMAMBA_CACHE_DIR"
HASH = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)
_lock = threading.Lock()  # what a thread makes, others wait for
_homeless: dict[str, bytes] = {}  # what could not be written lasts as long as the process


def folder() -> Path:
    """Return where code is kept; the environment's AUDIOMAMBA_CACHE_DIR is taken first."""
    above = os.environ.get(VARIABLE)
    if above:
        return Path(above).expanduser() / "cuda"
    above = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(above) if above else Path("~/.cache").expanduser()) / "audiomamba" / "cuda"


def kept(key: str, make: Callable[[], bytes]) -> bytes:
    """Return what is kept under a key, or make it and keep it.

    A file is the SHA-256 of its content, then that: one that is damaged is made again.
    """
    with _lock:
        content = _homeless.get(key) or _read(key)
        if content is None:
            content = make()
            _write(key, content)
        return content


def _read(key: str) -> bytes | None:
    """Return what is kept, or None if nothing whole is."""
    try:
        whole = (folder() / key).read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: nobody knows the user's home
        return None
    return whole[HASH:] if hashlib.sha256(whole[HASH:]).digest() == whole[:HASH] else None


def _write(key: str, content: bytes) -> None:
    try:
        path = folder() / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
    except (OSError, RuntimeError) as error:
        _homeless[key] = content
        _tell(str(error))


def why_not_kept() -> str | None:
    """Return why code cannot be kept, or None if it can; the folder is made to find out."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        if not os.access(folder(), os.W_OK):
            return f"{folder()} is not writable"
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


@cache
def _tell(reason: str) -> None:
    _log.warning("compiled code cannot be kept (%s); set %s to a folder", reason, VARIABLE)
