"""How the functions of this package are compiled."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

_log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

# Products may be fused with sums and the sign of zero is free; NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz"},
}


def jit(function: Function) -> Function:
    """Compile a function on its first call, or into the function that calls it."""
    return njit(**_OPTIONS)(function)  # type: ignore[no-any-return]


def jit_sums(function: Function) -> Function:
    """Compile as `jit`; sums may be taken in any order, so that they use vector registers."""
    return njit(**_OPTIONS | {"fastmath": {"contract", "nsz", "reassoc"}})(function)  # type: ignore[no-any-return]


def jit_cached(function: Function) -> Function:
    """Compile as `jit`; keep the code on disk, beside the source or in the user's cache folder."""
    try:
        return njit(**_OPTIONS, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError as error:  # numba finds no folder to write to
        _log.warning("compiled code cannot be kept (%s); set NUMBA_CACHE_DIR to a folder", error)
        return jit(function)


def fingerprint(folder: Path = Path(__file__).parent) -> int:
    """Return a number that changes with the Python source in a folder, by default this package's.

    numba compiles a cached function again when its own file changes, not when a function it calls
    does; but the variables that a closure captures count too, so the function captures this.
    """
    sources = sorted(folder.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    return int.from_bytes(digest.digest()[:7], "little")
