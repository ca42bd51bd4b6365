"""What is said of a device that fails or is full, in place of PyTorch's many lines."""

from __future__ import annotations

DEVICES = ("CUDA", "NVIDIA", "HIP")


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
