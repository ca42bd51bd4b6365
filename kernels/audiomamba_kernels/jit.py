"""How functions are compiled for the CPU."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import event
from numba.core.compiler import Compiler

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


class _Disjoint(Compiler):
    """Tells LLVM of every array argument that no other argument reaches its memory."""

    def define_pipelines(self) -> Any:
        """Set the flag, which numba has but offers as no option."""
        self.state.flags.noalias = True
        return super().define_pipelines()  # type: ignore[no-untyped-call]


def jit_disjoint(function: Function) -> Function:
    """Compile as `jit_sums` a function whose array arguments share no memory.

    Without the promise, LLVM compares addresses before each inner loop, and gives up on those that
    use many arrays. It becomes part of the function that calls it: a process that compiles would
    else call the copy compiled alone, and one that loads code from disk that copy's twin, compiled
    with its caller, whose roundings are others.
    """
    options = _OPTIONS | {"fastmath": {"contract", "nsz", "reassoc"}, "forceinline": True}
    return njit(**options, pipeline_class=_Disjoint)(function)  # type: ignore[no-any-return]


def jit_cached(function: Function) -> Function:
    """Compile as `jit`; keep the code on disk, beside the source or in the user's cache folder.

    If it cannot be kept, a warning is logged, and it lasts as long as the process. The function
    returned is to be called from Python, not from compiled code.
    """
    try:
        compiled: Any = njit(**_OPTIONS, cache=True)(function)
    except RuntimeError as error:  # numba finds no folder to write to
        _log.warning("compiled code cannot be kept (%s); set NUMBA_CACHE_DIR to a folder", error)
        return jit(function)

    @wraps(function)
    def call(*args: Any) -> Any:
        nonlocal compiled
        try:
            return compiled(*args)
        except OSError as error:  # of the cache: compiled code itself raises none
            _log.warning(
                "compiled code cannot be kept in %s (%s); free space there, or set NUMBA_CACHE_DIR "
                "to another folder",
                compiled.stats.cache_path,
                error,
            )
            if not compiled.signatures:  # numba failed to read; else it has compiled, then saved
                compiled = jit(function)
            return compiled(*args)

    return cast("Function", call)


@contextmanager
def announce(notify: Callable[[], None]) -> Iterator[None]:
    """Call `notify` as soon as this thread compiles within the context, once.

    Code that is loaded from disk is not compiled.
    """
    listener = _Once(notify)
    with event.install_listener("numba:compile", listener):
        yield


class _Once(event.Listener):
    """Tells of the first compilation by the thread that made this."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._thread = threading.get_ident()
        self._told = False

    def on_start(self, event: Any) -> None:
        """Tell, unless it was told or another thread compiles."""
        if not self._told and threading.get_ident() == self._thread:
            self._told = True
            self._notify()

    def on_end(self, event: Any) -> None:
        """Do nothing; numba asks for it."""


def fingerprint(folder: Path, pattern: str = "*.py") -> int:
    """Return a number that changes with Python source: files of a folder, and those they share.

    numba compiles a cached function again when its own file changes, not when a function it calls
    does; but the variables that a closure captures count too, so the function captures this.
    """
    shared = (Path(__file__).with_name(name) for name in ("jit.py", "tiles.py", "vector_math.py"))
    sources = [*sorted(folder.glob(pattern)), *shared]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    return int.from_bytes(digest.digest()[:7], "little")
