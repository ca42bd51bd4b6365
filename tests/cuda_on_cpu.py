"""The CUDA kernel as C++ for the CPU: slow, but the same source, and it sees what it reads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from audiomamba.engine import choice, cuda_compile, cuda_engine

SHIM = Path(__file__).with_suffix(".h")
ORDERS = ("forward", "reversed", "shuffled")  # in which warps, or threads, take turns
FAULTS = {
    1: "threads wait for ever",
    2: "a buffer was left at its end",
    3: "more shared memory was written than asked for",
}
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-x", "c++")
PROBE = """
#include <sys/mman.h>
#include <ucontext.h>
int main() { ucontext_t a; makecontext(&a, nullptr, 0); return getcontext(&a) + setcontext(&a); }
"""


class Launch(ctypes.Structure):
    _fields_ = [
        ("buffers", ctypes.c_void_p * 8),
        ("bytes", ctypes.c_longlong * 8),
        ("samples", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
    ]


class CpuKernel:
    """Stands for `cuda_driver.Kernel`; the code is the header that it was made from."""

    def __init__(self, device: int, code: bytes, shared_bytes: int) -> None:
        self._library = compiled(code.decode())
        self._shared_bytes = shared_bytes

    def launch(self, blocks: int, threads: int, arguments: Sequence[Any]) -> None:
        *tensors, samples = arguments
        assert all(x.is_contiguous() for x in tensors)
        made = [[x.clone() for x in tensors] for _ in ORDERS]
        for order, copies in enumerate(made):
            launch = Launch(
                tuple(x.data_ptr() for x in copies),
                tuple(x.nbytes for x in copies),
                samples,
                self._shared_bytes,
            )
            status = self._library.launch(blocks, order, launch)
            assert status == 0, f"{FAULTS[status]}, {ORDERS[order]}"
        for x, *others in zip(tensors, *made, strict=True):
            first, *rest = (other.numpy().tobytes() for other in others)
            assert all(other == first for other in rest), "the order of threads matters"
            x.copy_(others[0])


@cache
def compiled(header: str) -> ctypes.CDLL:
    """Return the kernel as a shared library; its file is gone when this returns."""
    with tempfile.TemporaryDirectory(prefix="cuda_on_cpu") as folder:
        own = Path(folder)
        (own / "plan.cuh").write_text(header)
        include = [f"-I{own}", f"-I{cuda_compile.FOLDER}"]
        library = own / "kernel.so"
        command = ["g++", *FLAGS, "-shared", "-fPIC", *include, SHIM, "-o", library]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


@cache
def why_not() -> str | None:
    """Return why the kernel cannot run on this CPU, or None: contexts are of glibc."""
    if shutil.which("g++") is None:
        return "CUDA needs a GPU, or g++ to run as C++"
    with tempfile.TemporaryDirectory(prefix="cuda_on_cpu") as folder:
        command = ["g++", *FLAGS, "-", "-o", f"{folder}/probe"]
        probe = subprocess.run(command, input=PROBE, text=True, capture_output=True, check=False)
    return f"g++ here cannot run CUDA as C++: {probe.stderr}" if probe.returncode else None


def compile_for_cpu(header: str, architecture: str, notify: Callable[[], None]) -> bytes:
    return header.encode()


def emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CUDA engine run on the CPU, with few threads; skip the test if it cannot."""
    if reason := why_not():
        pytest.skip(reason)
    monkeypatch.setattr(choice, "why_not_cuda", lambda device: None)
    monkeypatch.setattr(choice, "why_too_large", lambda config, device: None)
    monkeypatch.setattr(cuda_engine, "architecture_of", lambda device: "cpu")
    monkeypatch.setattr(cuda_engine, "compile_kernel", compile_for_cpu)
    monkeypatch.setattr(cuda_engine, "load_kernel", CpuKernel)
    monkeypatch.setitem(cuda_engine.CudaEngine.__init__.__kwdefaults__, "threads", 64)
    assert not torch.cuda.is_available()
