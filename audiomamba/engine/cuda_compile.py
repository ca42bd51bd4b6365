"""Compile the CUDA kernel while a program runs, and launch it: NVRTC and the driver, by ctypes.

Both are C libraries of stable interfaces; NVRTC comes with PyTorch, the driver with the GPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "cuda"
MAIN = "run.cu"
KERNEL = b"run"
MAX_DYNAMIC_SHARED_BYTES = 8  # of cuFuncSetAttribute


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
        RuntimeError: If the device is too old for it.
    """
    nvrtc, count = _nvrtc(), ctypes.c_int()
    _check(nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    known = (ctypes.c_int * count.value)()
    _check(nvrtc.nvrtcGetSupportedArchs(known), "nvrtcGetSupportedArchs")
    major, minor = torch.cuda.get_device_capability(device)
    number = 10 * major + minor
    if number in known:
        return f"sm_{number}"
    older = [n for n in known if n < number]
    if not older:
        raise RuntimeError(f"NVRTC knows no GPU as old as {device}, of capability {major}.{minor}")
    return f"compute_{max(older)}"


@cache
def compile_kernel(header: str, architecture: str) -> bytes:
    """Return the kernel as a cubin, or as PTX, which the driver translates.

    Args:
        header: Source of plan.cuh.
        architecture: As in "sm_90", or "compute_90" for PTX.

    Raises:
        RuntimeError: If NVRTC fails; its log is in the message.
    """
    nvrtc = _nvrtc()
    sources = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir())}
    main = sources.pop(MAIN)
    sources["plan.cuh"] = header.encode()
    program = ctypes.c_void_p()
    _check(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program),
            main,
            MAIN.encode(),
            len(sources),
            _strings(list(sources.values())),
            _strings([name.encode() for name in sources]),
        ),
        "nvrtcCreateProgram",
    )
    try:
        options = [f"--gpu-architecture={architecture}", "--std=c++17", "--ftz=true"]
        status = nvrtc.nvrtcCompileProgram(
            program, len(options), _strings([option.encode() for option in options])
        )
        if status:
            raise RuntimeError(f"the kernel cannot be compiled:\n{_log(nvrtc, program)}")
        return _output(nvrtc, program, "PTX" if architecture.startswith("compute") else "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


class Kernel:
    """A compiled kernel on the current device.

    Args:
        code: As `compile_kernel` gives it.
        shared_bytes: Of shared memory, of a block of threads.

    Raises:
        RuntimeError: If the driver refuses it.
    """

    def __init__(self, code: bytes, shared_bytes: int) -> None:
        self.shared_bytes = shared_bytes
        self._driver = _driver()
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        torch.cuda.current_stream().synchronize()  # the device's context is there and current
        self._call("cuModuleLoadData", ctypes.byref(self._module), code)
        self._call("cuModuleGetFunction", ctypes.byref(self._function), self._module, KERNEL)
        self._call("cuFuncSetAttribute", self._function, MAX_DYNAMIC_SHARED_BYTES, shared_bytes)

    def launch(self, blocks: int, threads: int, arguments: Sequence[Any]) -> None:
        """Launch on the current stream of PyTorch; tensors are passed as pointers, ints as int."""
        values = [
            ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else ctypes.c_int(x)
            for x in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values)
        )
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._call(
            "cuLaunchKernel", self._function, blocks, 1, 1, threads, 1, 1, self.shared_bytes,
            stream, pointers, None,
        )  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            message = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(message))
            raise RuntimeError(f"CUDA error: {name}: {(message.value or b'?').decode()}")


@cache
def _nvrtc() -> ctypes.CDLL:
    """Load NVRTC, which PyTorch may have loaded."""
    major = str(torch.version.cuda).split(".")[0]
    windows = sys.platform == "win32"
    name = f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}"
    try:
        return ctypes.CDLL(name)
    except OSError:
        folders = (Path(torch.__file__).parents[1] / "nvidia").glob(f"*/lib/{name}")
        for path in folders:
            return ctypes.CDLL(str(path))
        raise


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _strings(values: Sequence[bytes]) -> Any:
    return (ctypes.c_char_p * len(values))(*values)


def _check(status: int, name: str) -> None:
    if status:
        raise RuntimeError(f"{name} failed: error {status}")


def _log(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    return _output(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")


def _output(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw
