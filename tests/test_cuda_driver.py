"""What the driver is asked for, by one that is not there."""

from __future__ import annotations

import ctypes
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from audiomamba.engine import cuda_driver
from audiomamba.engine.cuda_driver import Kernel, load_kernel


class Driver:
    """Writes down what is called; a call named in `fails` returns an error."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, int] = {}
        self.launched: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"in words"
            if name == "cuLaunchKernel":
                first, last = (
                    ctypes.cast(arguments[9][i], ctypes.POINTER(kind))[0]
                    for i, kind in ((0, ctypes.c_void_p), (1, ctypes.c_int))
                )
                self.launched.append((*arguments[1:8], arguments[8].value, first, last))
            return self.fails.get(name, 0)

        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    stand_in = Driver()
    monkeypatch.setattr(cuda_driver, "driver", lambda: stand_in)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    stream = types.SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    caches = cuda_driver._context, load_kernel
    for cache in caches:
        cache.cache_clear()
    yield stand_in
    for cache in caches:  # what it loaded is unloaded by it
        cache.cache_clear()


def test_a_launch_makes_the_context_current_in_any_thread(driver: Driver) -> None:
    kernel = Kernel(1, b"code", 48)
    assert driver.calls[:2] == ["cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    driver.calls.clear()
    tensor = torch.zeros(3)
    kernel.launch(5, 64, [tensor, 9])
    assert driver.calls == ["cuCtxPushCurrent_v2", "cuLaunchKernel", "cuCtxPopCurrent_v2"]
    assert driver.launched == [(5, 1, 1, 64, 1, 1, 48, 7, tensor.data_ptr(), 9)]


def test_the_same_code_is_loaded_once_and_unloaded_when_nobody_has_it(driver: Driver) -> None:
    kernel = load_kernel(0, b"code", 48)
    assert load_kernel(0, b"code", 48) is kernel
    assert load_kernel(0, b"other", 48) is not load_kernel(1, b"code", 48)
    assert driver.calls.count("cuModuleLoadData") == 3
    for i in range(cuda_driver.LOADED):  # push those out
        load_kernel(0, b"%d" % i, 48)
    assert driver.calls.count("cuModuleUnload") == 2
    del kernel
    assert driver.calls.count("cuModuleUnload") == 3
    assert driver.calls.count("cuCtxPushCurrent_v2") == driver.calls.count("cuCtxPopCurrent_v2")


def test_what_fails_is_named_and_want_of_memory_is_what_pytorch_calls_so(driver: Driver) -> None:
    for name in ("cuModuleLoadData", "cuFuncSetAttribute"):
        driver.fails = {name: 222}
        with pytest.raises(RuntimeError, match=f"{name}: in words"):
            Kernel(0, b"code", 48)
        driver.fails = {name: cuda_driver.OUT_OF_MEMORY}
        with pytest.raises(torch.OutOfMemoryError, match=f"{name}: in words"):
            load_kernel(0, b"code", 48)
    driver.fails = {}
    kernel = load_kernel(0, b"code", 48)  # a failure is not kept
    driver.fails = {"cuLaunchKernel": cuda_driver.OUT_OF_MEMORY}
    with pytest.raises(torch.OutOfMemoryError):
        kernel.launch(1, 64, [torch.zeros(1), 1])
    assert driver.calls.count("cuCtxPushCurrent_v2") == driver.calls.count("cuCtxPopCurrent_v2")


def test_a_device_that_failed_is_left_alone(driver: Driver) -> None:
    kernel = Kernel(0, b"code", 48)
    driver.fails = {"cuCtxSynchronize": 700}
    del kernel
    assert driver.calls[-2:] == ["cuGetErrorString", "cuCtxPopCurrent_v2"]
