"""The CUDA kernel for a device: compiled once, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from audiomamba.engine import cuda_nvrtc
from audiomamba.engine.cuda_kept import kept

FOLDER = Path(__file__).parent / "cuda"
MAIN = "run.cu"
OLDEST = (7, 0)  # of capability: threads of a warp go on their own, loads keep out of a cache


@cache
def why_not_cuda(device: torch.device) -> str | None:
    """Return why nothing can be compiled for a device, or None if it can."""
    if device.type != "cuda":
        return f"the model is on {device}; it needs an NVIDIA GPU"
    if torch.version.cuda is None:
        return "this PyTorch is not for NVIDIA GPUs"
    try:
        architecture_of(device)
    except OSError as error:
        return f"NVRTC, which comes with PyTorch, cannot be loaded: {error}"
    except RuntimeError as error:
        return str(error)
    return None


def architecture_of(device: torch.device) -> str:
    """Return what `compile_kernel` shall compile for: the device, or the newest before it.

    Raises:
        OSError: If NVRTC cannot be loaded.
        RuntimeError: If the device is too old for it, or for the kernel.
    """
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST:
        raise RuntimeError(
            f"{device} has capability {major}.{minor}; the kernel needs {OLDEST[0]}.{OLDEST[1]}"
        )
    number, known = 10 * major + minor, cuda_nvrtc.known_architectures()
    if number in known:
        return f"sm_{number}"
    older = [n for n in known if n < number]
    if not older:
        raise RuntimeError(f"NVRTC knows no GPU as old as {device}, of capability {major}.{minor}")
    return f"compute_{max(older)}"


def compile_kernel(
    header: str, architecture: str, notify: Callable[[], None] = lambda: None
) -> bytes:
    """Return the kernel as a cubin, or as PTX, which the driver translates.

    Args:
        header: Source of plan.cuh.
        architecture: As in "sm_90", or "compute_90" for PTX.
        notify: Called before it is compiled, which takes seconds; not if it is on disk.

    Raises:
        OSError: If NVRTC cannot be loaded.
        RuntimeError: If NVRTC fails; its log is in the message.
    """
    paths = [path for path in sorted(FOLDER.iterdir()) if path.suffix in (".cu", ".cuh")]
    sources = {path.name: path.read_bytes() for path in paths}
    sources["plan.cuh"] = header.encode()

    def compile_it() -> bytes:
        notify()
        return cuda_nvrtc.compile_source(MAIN, sources, architecture)

    options = (architecture, *cuda_nvrtc.OPTIONS, *map(str, cuda_nvrtc.version()))
    return kept(_key([*(option.encode() for option in options), *sources.values()]), compile_it)


def _key(parts: list[bytes]) -> str:
    """Return the hash of parts; each counts with its length, so that none runs into the next."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
