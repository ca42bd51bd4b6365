"""The selective scan (S6) of Mamba, real or complex."""

from __future__ import annotations

import torch
from torch import Tensor

from audiomamba_kernels.backend import Backend, choose
from audiomamba_kernels.selective_scan.chunked import selective_scan_chunked
from audiomamba_kernels.selective_scan.reference import selective_scan_reference

__all__ = ["selective_scan", "selective_scan_chunked", "selective_scan_reference"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the recurrence whose step size, input and output maps depend on the input.

        delta_t = softplus(delta_t + delta_bias)
        h_t     = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        y_t     = (C_t h_t, or 2 Re(C_t h_t) if A is complex, + D u_t) * silu(z_t)

    Args:
        u: Input, (batch, time, channels), time >= 1; float32, bfloat16, float16 or float64.
        delta: Step sizes before bias and softplus, shape of u.
        A: (channels, state), float32 or complex64. A complex `state` counts conjugate pairs.
        B: (batch, time, state), real or complex as A.
        C: (batch, time, state), real or complex as A.
        D: Skip weights (channels,), float32, or None.
        z: Gate, shape of u, or None.
        delta_bias: (channels,), float32, or None.
        delta_softplus: Whether softplus is applied to delta + delta_bias.
        initial_state: h before the first step, (batch, channels, state), float32 or complex64; None
            is zeros.
        output_final_state: Whether the state after the last step is returned.
        backend: None (fastest), "torch" or "reference".

    Returns:
        y in u's shape and dtype, and the final state (batch, channels, state) or None. Gradients
        flow to every tensor argument, through both.

    Raises:
        ValueError: If a shape, the real or complex kind, or the backend is wrong.

    Source: Gu & Dao 2023 (arXiv 2312.00752), equation 2a, algorithm 2; Euler input map delta * B as
    in their code.
    """
    batch, steps, channels = u.shape
    state = A.shape[-1]
    _check("delta", delta, (batch, steps, channels))
    _check("A", A, (channels, state))
    _check("B", B, (batch, steps, state), complex=A.is_complex())
    _check("C", C, (batch, steps, state), complex=A.is_complex())
    _check("D", D, (channels,))
    _check("z", z, (batch, steps, channels))
    _check("delta_bias", delta_bias, (channels,))
    _check("initial_state", initial_state, (batch, channels, state), complex=A.is_complex())
    if steps < 1:
        raise ValueError("u has no time steps; the scan needs at least one")
    run = selective_scan_reference if choose(backend) == "reference" else selective_scan_chunked
    y, final_state = run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    return y, final_state if output_final_state else None


def _check(
    name: str, x: Tensor | None, shape: tuple[int, ...], complex: bool | None = None
) -> None:
    if x is None:
        return
    if x.shape != torch.Size(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {shape}")
    if complex is not None and x.is_complex() != complex:
        raise ValueError(
            f"{name} is {x.dtype}; it must be {'complex' if complex else 'real'} as A is"
        )
