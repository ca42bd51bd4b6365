"""A compiled kernel on a device, and its launches: the CUDA driver, by ctypes."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from typing import Any

import torch

KERNEL = b"run"
MAX_DYNAMIC_SHARED_BYTES = 8  # of cuFuncSetAttribute
OUT_OF_MEMORY = 2
LOADED = 16  # kernels at most that stay on a device when nobody uses them


class Kernel:
    """A kernel on a device; it is unloaded when nobody holds it.

    Args:
        device: Index of a GPU.
        code: As `compile_kernel` gives it.
        shared_bytes: Of shared memory, of a block of threads.

    Raises:
        OSError: If there is no driver.
        RuntimeError: If the driver refuses it, as PTX that is newer than itself.
        torch.OutOfMemoryError: If it does not fit beside what is on the device.
    """

    def __init__(self, device: int, code: bytes, shared_bytes: int) -> None:
        self.device, self.shared_bytes = device, shared_bytes
        self._function = ctypes.c_void_p()
        module = ctypes.c_void_p()
        with _current(device):
            call("cuModuleLoadData", ctypes.byref(module), code)
            weakref.finalize(self, _unload, device, module).atexit = False  # CUDA goes by itself
            call("cuModuleGetFunction", ctypes.byref(self._function), module, KERNEL)
            call("cuFuncSetAttribute", self._function, MAX_DYNAMIC_SHARED_BYTES, shared_bytes)

    def launch(self, blocks: int, threads: int, arguments: Sequence[Any]) -> None:
        """Launch on the device's current stream of PyTorch; returns before the kernel has run.

        Args:
            blocks: Count.
            threads: Of a block.
            arguments: Tensors are passed as pointers, ints as int. Their memory must be used on no
                other stream of the device before this one has come so far.

        Raises:
            RuntimeError: If the driver refuses it.
            torch.OutOfMemoryError: If memory that threads have of their own does not fit.
        """
        values = [
            ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else ctypes.c_int(x)
            for x in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values)
        )
        stream = ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
        with _current(self.device):
            call(
                "cuLaunchKernel", self._function, blocks, 1, 1, threads, 1, 1, self.shared_bytes,
                stream, pointers, None,
            )  # fmt: skip


@lru_cache(maxsize=LOADED)
def load_kernel(device: int, code: bytes, shared_bytes: int) -> Kernel:
    """Return a `Kernel`, the same for the same code, as every engine of a model asks for it."""
    return Kernel(device, code, shared_bytes)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        OSError: If there is no driver.
        RuntimeError: If it fails; its name and the driver's words are in the message.
        torch.OutOfMemoryError: If it fails for want of memory.
    """
    status = getattr(driver(), name)(*arguments)
    if status:
        message = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(message))
        kind = torch.OutOfMemoryError if status == OUT_OF_MEMORY else RuntimeError
        raise kind(f"CUDA error: {name}: {(message.value or b'?').decode()}")


@cache
def driver() -> ctypes.CDLL:
    """Return the driver. Raises OSError if there is none."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@contextmanager
def _current(device: int) -> Iterator[None]:
    """Make the context that PyTorch uses this thread's, which a new thread has not."""
    call("cuCtxPushCurrent_v2", _context(device))
    try:
        yield
    finally:
        call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@cache
def _context(device: int) -> ctypes.c_void_p:
    torch.cuda.init()  # type: ignore[no-untyped-call]  # and with it the driver
    number, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuDeviceGet", ctypes.byref(number), device)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
    return context


def _unload(device: int, module: ctypes.c_void_p) -> None:
    # Of a device that has failed nothing can be freed.
    with suppress(RuntimeError), _current(device):
        call("cuCtxSynchronize")  # what was launched runs to its end
        call("cuModuleUnload", module)
