"""Which implementation of an operation runs."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["triton", "cpu", "torch", "reference"]

BACKENDS: tuple[Backend, ...] = ("triton", "cpu", "torch", "reference")

# Found, not loaded; constants, so that torch.compile can trace the choice.
_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("numba", "triton")}

# Triton reads it when a kernel is defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def choose(backend: Backend | None, x: Tensor) -> Backend:
    """Return the backend that runs on x; None means the fastest that can.

    Args:
        backend: "triton" (a CUDA device; the CPU under TRITON_INTERPRET=1), "cpu" (numba), "torch"
            (plain PyTorch, any device), "reference" (a loop over time that reads like the formula)
            or None: "triton" on CUDA, "cpu" on the CPU, "torch" elsewhere and for what they lack.
        x: The main input.

    Raises:
        ValueError: If the name is none of these, or the backend cannot run on x.
    """
    if backend is None:
        return next(name for name in BACKENDS if why_not(name, x) is None and name in _own(x))
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose None or one of {', '.join(BACKENDS)}")
    reason = why_not(backend, x)
    if reason is not None:
        raise ValueError(f"backend {backend!r} cannot run: {reason}")
    return backend


def why_not(backend: Backend, x: Tensor) -> str | None:
    """Return why a backend cannot run on x, or None if it can."""
    if backend == "triton":
        if not _INSTALLED["triton"]:
            return "triton is not installed; it comes with PyTorch on Linux"
        if x.device.type != "cuda" and not INTERPRETED:
            return f"x is on {x.device}; Triton needs a CUDA device, or TRITON_INTERPRET=1"
        if torch.version.hip is not None:
            return "this PyTorch is for AMD GPUs, and the kernels hold instructions of NVIDIA's"
        if x.dtype == torch.float64:
            return "x is float64; its kernels compute in float32"
    if backend == "cpu":
        if x.device.type != "cpu":
            return f"x is on {x.device}; it must be on the CPU"
        if not _INSTALLED["numba"]:
            return "numba is not installed; pip install numba"
    return None


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the device of x the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def current_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a device's current stream, for `torch.cuda.stream`; None on a CPU."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def available_backends() -> tuple[Backend, ...]:
    """Return the names of the backends that can run on this machine."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    inputs = [torch.empty(0, device=device) for device in devices]
    return tuple(name for name in BACKENDS if any(why_not(name, x) is None for x in inputs))


def _own(x: Tensor) -> tuple[Backend, ...]:
    """What is chosen unasked: the interpreter is not."""
    fastest: Backend = "cpu" if x.device.type == "cpu" else "triton"
    return (fastest, "torch")
