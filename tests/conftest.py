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
# Of what tests start: threads that wait for each other are busy, and every core has a process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if importlib.util.find_spec("triton") is not None:
    from tests.interpreter import mend, watch

    mend()
    watch()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random tensors, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Whatever the test before it asked for."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    """Let torch.empty and its kin give NaN, so that a kernel that leaves a gap is found out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _freed_memory_is_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave a GPU to the tests that run beside this one."""
    yield
    if "gpu" in request.keywords and torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[Any]) -> Iterator[None]:
    for item in items:
        item.add_marker(
            pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
        )
        if "gpu" not in item.keywords:
            # A file is one process's: what its first test compiles, the others find. Layers, models
            # and what stands for mamba_ssm compile the same.
            folder, name = item.path.parent.name, item.path.name
            same = folder in ("layers", "models") or name.startswith("test_mamba_ssm")
            group = "networks" if same else name
            item.add_marker(pytest.mark.xdist_group(group))
        elif not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    yield
    for item in items:
        # xdist has put the group into the name; pytest 9.2 keeps that elsewhere.
        if hasattr(getattr(item, "_id", None), "parse") and hasattr(item, "_nodeid"):
            item._id = type(item._id).parse(item._nodeid)
