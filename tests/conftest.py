from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Read when Triton and the kernels are imported, which is after this.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if importlib.util.find_spec("triton") is not None:
    from triton.runtime import interpreter

    _patch_lang_tensor = interpreter._patch_lang_tensor

    def _patch_lang_tensor_and_index(tensor: Any, *scope: Any) -> None:
        _patch_lang_tensor(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    # Triton 3.6 asks for int() of an array of one element, which NumPy 2.4 refuses.
    interpreter._patch_lang_tensor = _patch_lang_tensor_and_index


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random tensors, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    """Let torch.empty and its kin give NaN, so that a kernel that leaves a gap is found out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(
            pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
        )
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
