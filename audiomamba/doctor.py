"""What works on this machine, and how to get the rest."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec

from audiomamba import __version__

EXTRAS = {
    "audio": ("librosa", "torchaudio"),
    "plot": ("matplotlib",),
    "speech": ("speechbrain", "torchaudio", "transformers"),
    "train": ("filelock", "lightning", "matplotlib"),
}
CORE = (
    "click",
    "huggingface_hub",
    "numba",
    "numpy",
    "safetensors",
    "soundfile",
    "soxr",
    "torch",
    "tqdm",
)

Row = tuple[str, str]


def examine() -> tuple[str, bool]:
    """Return a report for people, and whether the core works: reading, generating, writing."""
    core = [(name, _state(name)) for name in CORE]
    healthy = all(not state.startswith("broken") for _, state in core)
    sections: dict[str, list[Row]] = {"versions": [*_system(), *core]}
    if healthy:
        sections["devices"] = list(_devices())
        sections["kernels"] = list(_kernels())
    sections["extras"] = [(extra, _extra(extra)) for extra in EXTRAS]
    lines = []
    for title, rows in sections.items():
        lines.append(title)
        lines += [f"  {name:<16} {state}" for name, state in rows]
    return "\n".join(lines), healthy


def _system() -> Iterator[Row]:
    yield "audiomamba", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    if find_spec("triton") is not None:
        yield "triton", _version("triton")


def _state(package: str) -> str:
    """Return the version of a package, or why it cannot be used."""
    if find_spec(package) is None:
        return f"broken: not installed; pip install {package}"
    try:
        import_module(package)
    except Exception as error:  # an import can fail in any way, as torchaudio's and numba's do
        reason = " ".join(str(error).split())
        return f"broken: {package} {_version(package)} cannot be imported: {reason}"
    return _version(package)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _devices() -> Iterator[Row]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    simd = torch.backends.cpu.get_cpu_capability()
    yield "cpu", f"{platform.machine()}, {cores} cores, {simd}"
    if torch.version.cuda is None and torch.version.hip is None:
        yield "cuda", "none: this build of torch is for the CPU"
    elif not torch.cuda.is_available():
        yield "cuda", "none: no NVIDIA device or driver found"
    else:
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps", "Apple GPU"


def _kernels() -> Iterator[Row]:
    from audiomamba_kernels import available_backends
    from audiomamba_kernels.backend import BACKENDS, INTERPRETED

    runs = {
        "reference": "yes: a loop over time, any device",
        "torch": "yes: chunked PyTorch, any device",
        "cpu": "yes: numba on all cores, for training and evaluation on the CPU",
        "triton": "yes: interpreted, for tests" if INTERPRETED else "yes: on a CUDA device",
    }
    triton = "needs an NVIDIA GPU" if find_spec("triton") else "comes with PyTorch on Linux"
    lacks = {"cpu": "numba is not installed", "triton": triton}
    available = available_backends()
    for backend in BACKENDS:
        yield backend, runs[backend] if backend in available else f"no: {lacks[backend]}"
    yield "numba", f"yes: generation on the CPU; {_compiled_code()}"
    yield "cuda engine", _cuda_engine()


def _cuda_engine() -> str:
    """Tell whether the CUDA kernel generates here, and where it is kept when it is compiled."""
    import torch

    from audiomamba.engine import cuda_compile, cuda_driver, cuda_kept

    if not torch.cuda.is_available():
        return "no: needs an NVIDIA GPU"
    for index in range(torch.cuda.device_count()):
        reason = cuda_compile.why_not_cuda(torch.device("cuda", index))
        if reason is not None:
            return f"no: {reason}"
    try:
        cuda_driver.driver()
    except OSError as error:
        return f"no: {error}"
    reason = cuda_kept.why_not_kept()
    if reason is not None:
        return (
            f"yes: generation on NVIDIA GPUs; compiled code cannot be kept: {reason}; every start "
            f"compiles; set {cuda_kept.VARIABLE} to a folder that is writable"
        )
    kept = f"compiled code is kept in {cuda_kept.folder()}, which is writable"
    return f"yes: generation on NVIDIA GPUs; {kept}"


def _compiled_code() -> str:
    """Tell where numba keeps compiled code; it takes the first folder that it can write to."""
    import numba

    from audiomamba.engine import philox

    source = getattr(philox.uniform, "py_func", None)  # its folder counts; it is not compiled
    if source is None:
        return "compiling is switched off by NUMBA_DISABLE_JIT"
    try:
        folder = numba.njit(cache=True)(source).stats.cache_path
    except RuntimeError:
        return (
            "compiled code cannot be kept, as no folder for it is writable: every start compiles; "
            "set NUMBA_CACHE_DIR to a folder that is"
        )
    return f"compiled code is kept in {folder}, which is writable"


def _extra(extra: str) -> str:
    states = {package: _state(package) for package in EXTRAS[extra]}
    missing = [package for package in EXTRAS[extra] if find_spec(package) is None]
    if missing:
        return f"missing {', '.join(missing)}; pip install {' '.join(missing)}"
    broken = [state for state in states.values() if state.startswith("broken")]
    if broken:
        remedy = ""
        if "torchaudio" in broken[0]:
            remedy = (
                "; it works with the torch from PyPI that it was built for, not with a small one "
                "for CPUs: pip install --force-reinstall torch torchaudio"
            )
        return f"{broken[0]}{remedy}"
    return ", ".join(f"{package} {state}" for package, state in states.items())
