"""The selective scan (S6) of Mamba, real or complex."""

from __future__ import annotations

from torch import Tensor

from audiomamba_kernels.backend import Backend, choose
from audiomamba_kernels.ragged import check_lengths, pack, unpack
from audiomamba_kernels.selective_scan.chunked import selective_scan_chunked
from audiomamba_kernels.selective_scan.op import selective_scan_op
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
    reverse: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the recurrence whose step size, input and output maps depend on the input.

        delta_t = softplus(delta_t + delta_bias)
        h_t     = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        y_t     = (C_t h_t, or 2 Re(C_t h_t) if A is complex, + D u_t) * silu(z_t)

    Floating dtypes may differ from argument to argument: everything is computed in float32, or in
    float64 if u is, and each gradient comes back in its argument's dtype. One sum is shorter: on a
    GPU, the terms of the gradient of a B or C that varies in time are cut to 11 bits (tf32) where
    it is of half precision, or complex and u of half precision.

    Args:
        u: Input, (batch, time, channels), time >= 1; float32, bfloat16, float16 or float64.
        delta: Step sizes before bias and softplus, shape of u.
        A: (channels, state), real or complex. A complex `state` counts conjugate pairs.
        B: (batch, time, state), or (channels, state) if constant; real or complex as A.
        C: As B, independently.
        D: Skip weights (channels,) or None.
        z: Gate, shape of u, or None.
        delta_bias: (channels,) or None.
        delta_softplus: Whether softplus is applied to delta + delta_bias.
        initial_state: h before the first step, (batch, channels, state), real or complex as A; None
            is zeros.
        output_final_state: Whether the state after the last step is returned.
        reverse: Whether time runs from the last valid step to the first: initial_state comes before
            the last one, and the final state after the first one.
        lengths: (batch,), integers from 0 to time; None is time. From there on a row is padding: y
            is zero, no gradient flows, and whatever stands there, NaN included, has no effect.
        cu_seqlens: (sequences + 1,), integers: batch is 1 and sequence i stands at
            cu_seqlens[i] <= t < cu_seqlens[i + 1]; states are (sequences, channels, state). It
            is run as a padded batch, which takes memory for every sequence as for the longest. Its
            values are read, so that a GPU is waited for unless cu_seqlens is on the CPU, and
            torch.compile cannot have one graph; with `lengths` it can.
        backend: None (fastest), "triton", "cpu", "torch" or "reference".

    Returns:
        y in u's shape and dtype, and the final state (batch, channels, state) or None, float32 or
        complex64 (float64 or complex128 if u is float64). Gradients flow to every tensor argument,
        through both.

    Raises:
        ValueError: If a shape, the real or complex kind, a device, a length or the backend is
            wrong.

    Source: Gu & Dao 2023 (arXiv 2312.00752), equation 2a, algorithm 2; Euler input map delta * B as
    in their code.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    total = u.shape[1]
    if cu_seqlens is not None:
        if lengths is not None:
            raise ValueError("lengths and cu_seqlens are both given; choose one")
        u, lengths = unpack(u, cu_seqlens)
        delta, B, C = (
            unpack(x, cu_seqlens, longest=u.shape[1])[0] if x.dim() == 3 else x
            for x in (delta, B, C)
        )
        z = None if z is None else unpack(z, cu_seqlens, longest=u.shape[1])[0]
    elif lengths is not None:
        lengths = check_lengths(lengths, u)
    args = (u, delta, A, B, C, D, z, delta_bias, initial_state, lengths, delta_softplus, reverse)
    chosen = choose(backend, u)
    if chosen == "reference":
        y, final_state = selective_scan_reference(*args)
    elif chosen == "torch":
        y, final_state = selective_scan_chunked(*args)
    else:
        y, final_state, _ = selective_scan_op(*args, chosen)
    if cu_seqlens is not None:
        y = pack(y, cu_seqlens, total)
    return y, final_state if output_final_state else None


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> None:
    if u.dim() != 3 or u.shape[1] < 1 or not u.is_floating_point():
        raise ValueError(
            f"u is {u.dtype} of shape {tuple(u.shape)}; it must be real, (batch, time, channels), "
            "with time >= 1: a scan needs at least one time step"
        )
    if A.dim() != 2:
        raise ValueError(f"A has shape {tuple(A.shape)}; it must be (channels, state)")
    (batch, steps, channels), state = u.shape, A.shape[1]
    sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    kind = A.is_complex()
    expected = {
        "delta": (delta, (batch, steps, channels), False),
        "A": (A, (channels, state), kind),
        "B": (B, (channels, state) if B.dim() == 2 else (batch, steps, state), kind),
        "C": (C, (channels, state) if C.dim() == 2 else (batch, steps, state), kind),
        "D": (D, (channels,), False),
        "z": (z, (batch, steps, channels), False),
        "delta_bias": (delta_bias, (channels,), False),
        "initial_state": (initial_state, (sequences, channels, state), kind),
    }
    for name, (x, shape, complex) in expected.items():
        if x is None:
            continue
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {shape}")
        if not (x.is_floating_point() or x.is_complex()) or x.is_complex() != complex:
            raise ValueError(
                f"{name} is {x.dtype}; it must be "
                + (f"complex as A ({A.dtype}) is" if complex else "real floating point")
            )
        if x.device != u.device:
            raise ValueError(f"{name} is on {x.device}; it must be on {u.device} as u is")
