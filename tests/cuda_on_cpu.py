"""The CUDA kernel as C++ for the CPU: slow, but the same source, and it sees what it reads."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from audiomamba.engine import choice, cuda_compile, cuda_engine

SHIM = Path(__file__).with_suffix(".h")
NAMES = ("tokens", "streams", "nats", "logits", "state", "weights", "vectors", "options")


class Launch(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in NAMES), ("samples", ctypes.c_int)]


class CpuKernel:
    """Stands for `cuda_compile.Kernel`; the code is the path of a shared library."""

    def __init__(self, code: bytes, shared_bytes: int) -> None:
        self._library = ctypes.CDLL(code.decode())

    def launch(self, blocks: int, threads: int, arguments: Sequence[Any]) -> None:
        *tensors, samples = arguments
        assert all(x.is_contiguous() and x.data_ptr() % 16 == 0 for x in tensors)
        pointers = [x.data_ptr() for x in tensors]
        assert self._library.launch(blocks, Launch(*pointers, samples)) == 0, (
            "threads wait for ever"
        )


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="cuda_on_cpu"))


@cache
def compile_for_cpu(header: str, architecture: str) -> bytes:
    """Return the path of the kernel as a shared library."""
    own = folder() / hashlib.sha256(header.encode()).hexdigest()[:16]
    own.mkdir()
    (own / "plan.cuh").write_text(header)
    library = own / "kernel.so"
    include = [f"-I{own}", f"-I{cuda_compile.FOLDER}"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, *include, "-x", "c++", SHIM, "-o", library], check=True)
    return str(library).encode()


def emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CUDA engine run on the CPU, with few threads; skip the test if it cannot."""
    if shutil.which("g++") is None:
        pytest.skip("CUDA needs a GPU, or g++ to run as C++")
    monkeypatch.setattr(choice, "why_not_cuda", lambda device: None)
    monkeypatch.setattr(cuda_engine, "architecture_of", lambda device: "cpu")
    monkeypatch.setattr(cuda_engine, "compile_kernel", compile_for_cpu)
    monkeypatch.setattr(cuda_engine, "Kernel", CpuKernel)
    monkeypatch.setitem(cuda_engine.CudaEngine.__init__.__kwdefaults__, "threads", 64)
    assert not torch.cuda.is_available()
