"""The scan of Mamba-S4: the selective scan with step size, B and C constant in time."""

from __future__ import annotations

import torch
from torch import Tensor

from audiomamba_kernels.backend import Backend, choose
from audiomamba_kernels.lti_scan.chunked import chunk_maps, lti_chunks, lti_scan_chunked
from audiomamba_kernels.lti_scan.reference import lti_scan_reference

__all__ = ["chunk_maps", "lti_chunks", "lti_scan", "lti_scan_chunked", "lti_scan_reference"]


def lti_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run a linear time-invariant state space model, a causal convolution, in each channel.

        h_t = exp(delta A) h_{t-1} + delta B u_t
        y_t = (C h_t, or 2 Re(C h_t) if A is complex, + D u_t) * silu(z_t)

    Args:
        u: Input, (batch, time, channels), time >= 1; float32, bfloat16, float16 or float64.
        delta: Step sizes (channels,), positive, after any softplus.
        A: (channels, state), float32 or complex64, Re A < 0. A complex `state` counts conjugate
            pairs.
        B: (channels, state), as A.
        C: (channels, state), as A.
        D: Skip weights (channels,) or None.
        z: Gate, shape of u, or None.
        initial_state: h before the first step, (batch, channels, state), float32 or complex64; None
            is zeros.
        output_final_state: Whether the state after the last step is returned.
        backend: None (fastest), "torch" or "reference".

    Returns:
        y in u's shape and dtype, and the final state (batch, channels, state) or None. Gradients
        flow to every tensor argument, through both.

    Raises:
        ValueError: If a shape, the real or complex kind, or the backend is wrong.

    Source: Gu & Dao 2023 (arXiv 2312.00752), section 4.4 and appendix E.4 ("Mamba-S4"); Gu et al.
    2022 (arXiv 2206.11893), S4D.
    """
    batch, steps, channels = u.shape
    expected = {
        "delta": (delta, (channels,)),
        "A": (A, (channels, A.shape[-1])),
        "B": (B, tuple(A.shape)),
        "C": (C, tuple(A.shape)),
        "D": (D, (channels,)),
        "z": (z, tuple(u.shape)),
        "initial_state": (initial_state, (batch, *A.shape)),
    }
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != torch.Size(shape):
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {shape}")
        if (
            x is not None
            and name in ("B", "C", "initial_state")
            and x.is_complex() != A.is_complex()
        ):
            raise ValueError(
                f"{name} is {x.dtype}; it must be complex if and only if A ({A.dtype}) is"
            )
    if steps < 1:
        raise ValueError("u has no time steps; the scan needs at least one")
    run = lti_scan_reference if choose(backend) == "reference" else lti_scan_chunked
    y, final_state = run(u, delta, A, B, C, D, z, initial_state)
    return y, final_state if output_final_state else None
