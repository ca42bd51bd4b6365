"""Inputs in float64, and the comparison of two functions of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

BATCH, CHANNELS, N, STEPS = 2, 6, 3, 7
RANK, OUT = 2, 5
KINDS = pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])


def rand(*shape: int, complex: bool = False) -> Tensor:
    real = torch.randn(*shape, dtype=torch.float64)
    return torch.complex(real, torch.randn(*shape, dtype=torch.float64)) if complex else real


def rates(complex: bool) -> Tensor:
    real = -torch.rand(CHANNELS, N, dtype=torch.float64)
    return torch.complex(real, rand(CHANNELS, N)) if complex else real


def close(got: Any, exact: Any) -> None:
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


Function = Callable[..., "Tensor | tuple[Tensor, ...]"]


def check(fn: Function, exact: Function, tensors: dict[str, Tensor | None]) -> None:
    """Compare all outputs, and the gradients of a loss of all outputs for all tensors."""

    def run(fn: Function) -> list[Tensor]:
        leaves = {
            name: None if x is None else x.detach().clone().requires_grad_()
            for name, x in tensors.items()
        }
        outputs = fn(**leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(1)
        loss = torch.zeros((), dtype=torch.float64)
        for output in outputs:
            parts = torch.view_as_real(output) if output.is_complex() else output
            loss = loss + (parts * rand(*parts.shape)).sum()
        inputs = [x for x in leaves.values() if x is not None]
        return [x.detach() for x in outputs] + list(torch.autograd.grad(loss, inputs))

    for got, wanted in zip(run(fn), run(exact), strict=True):
        assert got.dtype == wanted.dtype
        close(got, wanted)


FORMS = {"constant": (CHANNELS, N), "shared": (BATCH, N), "1": (BATCH, 1, N), "2": (BATCH, 2, N)}


def a_map(form: str, complex: bool) -> Tensor:
    if form == "constant":
        return rand(*FORMS[form], complex=complex)
    return rand(*FORMS[form], STEPS * (2 if complex else 1))


def scan_inputs(B: str, C: str, complex: bool) -> dict[str, Tensor | None]:
    return {
        "u": rand(BATCH, CHANNELS, STEPS),
        "delta": rand(BATCH, CHANNELS, STEPS).abs() / 2,
        "A": rates(complex),
        "B": a_map(B, complex),
        "C": a_map(C, complex),
        "D": rand(CHANNELS),
        "z": rand(BATCH, CHANNELS, STEPS),
        "delta_bias": rand(CHANNELS),
    }


def inner_inputs(complex: bool, given: str = "") -> dict[str, Tensor | None]:
    size = 2 * N if complex else N
    rows = RANK + size * sum(name not in given for name in "BC")
    return {
        "xz": rand(BATCH, 2 * CHANNELS, STEPS),
        "conv1d_weight": rand(CHANNELS, 1, 4),
        "conv1d_bias": rand(CHANNELS),
        "x_proj_weight": rand(rows, CHANNELS) / 2,
        "delta_proj_weight": rand(CHANNELS, RANK) / 2,
        "out_proj_weight": rand(OUT, CHANNELS),
        "out_proj_bias": rand(OUT),
        "A": rates(complex),
        "B": None,
        "C": None,
        "D": rand(CHANNELS),
        "delta_bias": rand(CHANNELS),
        "B_proj_bias": rand(size),
        "C_proj_bias": rand(size),
    }
