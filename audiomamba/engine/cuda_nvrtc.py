"""NVRTC, the compiler of CUDA C++ that comes with PyTorch, by ctypes: its interface is stable C."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

OPTIONS = ("--std=c++17", "--ftz=true")
NAMES_OF_11 = ("libnvrtc.so.11.2", "nvrtc64_112_0.dll")  # since CUDA 11.2, of all 11.x


@cache
def nvrtc() -> ctypes.CDLL:
    """Return NVRTC: PyTorch's own copy, whose companions fit, before one of the system.

    Raises:
        OSError: If there is none that can be loaded.
    """
    name = library_name(str(torch.version.cuda), sys.platform)
    for path in copies(name, sys.path):
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # of another machine, say; the next may do
            continue
    return ctypes.CDLL(name)


def library_name(cuda: str, platform: str) -> str:
    """Return what NVRTC of a version of CUDA, such as "12.6", is called on `sys.platform`."""
    major, windows = cuda.split(".")[0], platform == "win32"
    if major == "11":
        return NAMES_OF_11[windows]
    return f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}"


def copies(name: str, folders: Sequence[str]) -> Iterator[Path]:
    """Yield the files of a name that PyTorch installs, or NVIDIA's packages beside it.

    Args:
        name: As `library_name` gives it.
        folders: Where packages are, as in `sys.path`.
    """
    beside = Path(torch.__file__).parent / "lib" / name
    if beside.is_file():
        yield beside
    for folder in dict.fromkeys(folders):  # nvidia/cuda_nvrtc/lib, nvidia/cu13/lib; bin on Windows
        for kind in ("lib", "bin", "bin/x86_64"):
            yield from sorted(Path(folder).glob(f"nvidia/*/{kind}/{name}"))


@cache
def version() -> tuple[int, int]:
    """Return the version of NVRTC. Raises OSError as `nvrtc`."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


@cache
def known_architectures() -> tuple[int, ...]:
    """Return what NVRTC compiles for, such as 90. Raises OSError as `nvrtc`."""
    count = ctypes.c_int()
    _check(nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    known = (ctypes.c_int * count.value)()
    _check(nvrtc().nvrtcGetSupportedArchs(known), "nvrtcGetSupportedArchs")
    return tuple(known)


def compile_source(main: str, sources: Mapping[str, bytes], architecture: str) -> bytes:
    """Compile a file.

    Args:
        main: Its name.
        sources: Content of it and of what it includes, by name.
        architecture: "sm_90" for a cubin, "compute_90" for PTX, which the driver translates.

    Raises:
        OSError: As `nvrtc`.
        RuntimeError: If it fails; its log is in the message.
    """
    library, program = nvrtc(), ctypes.c_void_p()
    others = {name: source for name, source in sources.items() if name != main}
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program),
            sources[main],
            main.encode(),
            len(others),
            _strings(list(others.values())),
            _strings([name.encode() for name in others]),
        ),
        "nvrtcCreateProgram",
    )
    try:
        options = [option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS)]
        if library.nvrtcCompileProgram(program, len(options), _strings(options)):
            log = _output(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise RuntimeError(f"the kernel cannot be compiled:\n{log}")
        return _output(library, program, "PTX" if architecture.startswith("compute") else "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _strings(values: Sequence[bytes]) -> Any:
    return (ctypes.c_char_p * len(values))(*values)


def _check(status: int, name: str) -> None:
    if status:
        raise RuntimeError(f"{name} failed: error {status}")


def _output(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw
