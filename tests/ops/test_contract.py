"""The contract sees what it is there to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba_kernels import selective_scan
from tests.contract import check_kernel
from tests.ops.selective_cases import inputs


class _Rounded(torch.autograd.Function):
    """x, whose gradient passes through a half precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype).to(grads[0].dtype), None


def careless(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """Return a scan that rounds its final state, or one gradient, to a half precision."""

    def scan(*, backend: str, **tensors: Any) -> Any:
        if backend == "reference":
            return selective_scan(**tensors, backend="reference")
        if name != "final_state":
            tensors[name] = _Rounded.apply(tensors[name], dtype)
        y, state = selective_scan(**tensors, backend="torch")
        if name == "final_state" and state is not None:
            state = state.to(dtype).float()
        return y, state

    return scan


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["final_state", "A", "D", "delta_bias", "initial_state"])
def test_rounding_what_is_float32_to_the_inputs_dtype_is_seen(
    name: str, dtype: torch.dtype
) -> None:
    with pytest.raises(AssertionError, match=name):
        check_kernel(careless(name, dtype), "careless", inputs(9), dtype)
