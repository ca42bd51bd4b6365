"""What is said of Ctrl-C, and of a disk or a device that fails or is full, in one line."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

INTERRUPTED = 130
REMEDIES = {
    errno.ENOSPC: "; free some space or name another folder",
    errno.EDQUOT: "; free some of your quota or name another folder",
    errno.EFBIG: "; ask for less or name a folder that takes larger files",
    errno.EACCES: "; change its permissions or name another folder",
}
DEVICES = ("CUDA", "NVIDIA", "HIP")


@contextmanager
def telling_ctrl_c(so_far: Callable[[], str]) -> Iterator[None]:
    """End on Ctrl-C with what was made until then."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"interrupted: {so_far()}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


@contextmanager
def telling(so_far: Callable[[], str]) -> Iterator[None]:
    """End on Ctrl-C, and on a disk or a device that fails, with what was made until then."""
    try:
        with telling_ctrl_c(so_far):
            yield
    except BrokenPipeError:
        raise
    except (OSError, RuntimeError) as error:
        reason = failure(error)
        if reason is None:
            raise
        raise OSError(f"{reason}; {so_far()}") from error


def failure(error: BaseException) -> str | None:
    """Return in one line what the system or a GPU says, or None if the error is of neither."""
    if not isinstance(error, OSError):
        return device_failure(error)
    if not error.strerror:
        return str(error)
    place = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{place}{REMEDIES.get(error.errno or 0, '')}"


def device_failure(error: BaseException) -> str | None:
    """Return in one line what happened to a GPU, or None if the error is no GPU's.

    PyTorch, Triton and the driver raise RuntimeError and its kin, and PyTorch is not imported here.
    """
    kind, said = type(error).__name__, str(error).strip().split("\n")[0]
    if kind == "OutOfMemoryError" or said.endswith(": out of memory"):
        return "the device's memory is full; free some of it, or ask for less at once"
    if isinstance(error, RuntimeError) and any(name in said for name in DEVICES):
        return f"the device failed ({said}); audiomamba doctor tells what works here"
    return None
