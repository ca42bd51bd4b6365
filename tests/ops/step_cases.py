"""Inputs of steps, and steps to be tried on every backend and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba_kernels.backend import why_not
from audiomamba_kernels.step import causal_conv1d_step, lti_mamba_step, selective_scan_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, STEPS, CHANNELS = 2, 3, 5


TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(
        why_not("triton", torch.empty(0, device=DEVICE)) is not None,
        reason="needs a CUDA device or TRITON_INTERPRET=1",
    ),
)


BACKENDS = pytest.mark.parametrize("backend", [TRITON, "reference"])
KINDS = pytest.mark.parametrize("complex", [False, True], ids=["real", "complex"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def rand(*shape: int, complex: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, device=DEVICE)
    return torch.complex(x, torch.randn(*shape, device=DEVICE)) if complex else x.to(dtype)


def exact(x: Any) -> Any:
    """Widen tensors to float64."""
    if not isinstance(x, Tensor):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def tolerance(dtype: torch.dtype) -> float:
    """A rounding of a half precision (the interpreter cuts), or a few of float32 a step."""
    return 4e-7 * STEPS if dtype == torch.float32 else torch.finfo(dtype).eps


def scan_inputs(n: int, complex: bool, dtype: torch.dtype) -> dict[str, Any]:
    shape = (BATCH, STEPS, CHANNELS)
    rates = -torch.rand(CHANNELS, n, device=DEVICE)
    return {
        "u": rand(*shape, dtype=dtype),
        "delta": rand(*shape, dtype=dtype).abs() / 2,
        "A": torch.complex(rates, rand(CHANNELS, n) * 3) if complex else rates,
        "B": rand(BATCH, STEPS, n, complex=complex),
        "C": rand(BATCH, STEPS, n, complex=complex),
        "D": rand(CHANNELS),
        "z": rand(*shape, dtype=dtype),
        "delta_bias": rand(CHANNELS),
        "initial_state": rand(BATCH, CHANNELS, n, complex=complex),
    }


Step = Callable[[list[Tensor], list[Any]], tuple[Tensor, ...]]


def a_step(name: str, complex: bool, dtype: torch.dtype, backend: Any) -> tuple[Step, list[Tensor]]:
    """Return a function of states and where to write them, and states, in unusual layouts."""
    n, width = 3, 4
    x = scan_inputs(n, complex, torch.float32)
    u, z, B, C = (x[key][:, 0] for key in ("u", "z", "B", "C"))
    weight, maps = rand(CHANNELS, width), rand(3, CHANNELS, n, complex=complex)
    conv = rand(BATCH, CHANNELS, width - 1, dtype=dtype).mT
    ssm = rand(n, BATCH, CHANNELS, complex=complex, dtype=dtype).permute(1, 2, 0)

    def scan(states: list[Tensor], out: list[Any]) -> tuple[Tensor, ...]:
        return selective_scan_step(
            u, u, x["A"], B, C, state=states[0], out_state=out[0], backend=backend
        )

    def convolve(states: list[Tensor], out: list[Any]) -> tuple[Tensor, ...]:
        return causal_conv1d_step(u, states[0], weight, out_state=out[0], backend=backend)

    def lti(states: list[Tensor], out: list[Any]) -> tuple[Tensor, ...]:
        conv, ssm = states
        return lti_mamba_step(
            u, z, conv, ssm, weight, None, *maps.unbind(),
            out_conv_state=out[0], out_ssm_state=out[1], backend=backend,
        )  # fmt: skip

    steps: dict[str, tuple[Step, list[Tensor]]] = {
        "scan": (scan, [ssm]),
        "conv": (convolve, [conv]),
        "lti": (lti, [conv, ssm]),
    }
    return steps[name]
