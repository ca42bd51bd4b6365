"""Which implementation of an operation runs."""

from __future__ import annotations

from typing import Literal

Backend = Literal["torch", "reference"]

BACKENDS: tuple[Backend, ...] = ("torch", "reference")


def choose(backend: Backend | None) -> Backend:
    """Return the backend to run; None means the fastest that can.

    Args:
        backend: "torch" (chunked PyTorch, any device), "reference" (a loop over time that reads
            like the formula, any dtype) or None.

    Raises:
        ValueError: If the name is none of these.
    """
    if backend is None:
        return "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose None or one of {', '.join(BACKENDS)}")
    return backend


def available_backends() -> tuple[Backend, ...]:
    """Return the names of the backends that can run on this machine."""
    return BACKENDS
