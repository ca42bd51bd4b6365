"""The scan of Mamba-S4: the selective scan with step size, B and C constant in time."""

from __future__ import annotations

import torch
from torch import Tensor

from audiomamba_kernels.backend import Backend, choose
from audiomamba_kernels.lti_scan.chunked import chunk_maps, lti_chunks, lti_scan_chunked
from audiomamba_kernels.lti_scan.layout import to_rows
from audiomamba_kernels.lti_scan.op import lti_scan_op
from audiomamba_kernels.lti_scan.reference import lti_scan_reference
from audiomamba_kernels.ragged import check_lengths, pack, unpack

__all__ = [
    "chunk_maps",
    "lti_chunks",
    "lti_scan",
    "lti_scan_chunked",
    "lti_scan_op",
    "lti_scan_reference",
]

# Real numbers of a state, of which a complex one has two: those of a tile lie in shared memory,
# where 512 would not fit on an A100.
TRITON_MAX_STATE = 256


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
    reverse: bool = False,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run a linear time-invariant state space model, a causal convolution, in each channel.

        h_t = exp(delta A) h_{t-1} + delta B u_t
        y_t = (C h_t, or 2 Re(C h_t) if A is complex, + D u_t) * silu(z_t)

    Floating dtypes may differ from argument to argument: everything is computed in float32, or in
    float64 if u is (on a GPU the matrix products of bfloat16 inputs round their operands to it),
    and each gradient comes back in its argument's dtype.

    Args:
        u: Input, (batch, time, channels), time >= 1; float32, bfloat16, float16 or float64. Fastest
            on a GPU if time is contiguous in memory and rows begin at multiples of 16 elements.
        delta: Step sizes (channels,), positive, after any softplus.
        A: (channels, state), real or complex, Re A < 0. A complex `state` counts conjugate pairs.
        B: (channels, state), as A.
        C: (channels, state), as A.
        D: Skip weights (channels,) or None.
        z: Gate, shape of u, or None.
        initial_state: h before the first step, (batch, channels, state), real or complex as A; None
            is zeros.
        output_final_state: Whether the state after the last step is returned.
        reverse: Whether time runs from the last valid step to the first: initial_state comes before
            the last one, and the final state after the first one.
        lengths: (batch,), integers from 0 to time; None is time. From there on a row is padding: y
            is zero, no gradient flows, and whatever stands there, NaN included, has no effect.
        cu_seqlens: (sequences + 1,), integers: batch is 1 and sequence i stands at
            cu_seqlens[i] <= t < cu_seqlens[i + 1]; states are (sequences, channels, state). It
            is run as a padded batch, which takes memory for every sequence as for the longest. The
            longest length is read, so that a GPU is waited for unless cu_seqlens is on the CPU, and
            torch.compile(fullgraph=True) needs torch._dynamo.config.capture_scalar_outputs.
        backend: None (fastest), "triton" (up to 256 real or 128 complex states, beyond which None
            is "torch" on a GPU), "cpu", "torch" or "reference".

    Returns:
        y in u's shape and dtype, and the final state (batch, channels, state) or None, float32 or
        complex64 (float64 or complex128 if u is float64). Gradients flow to every tensor argument,
        through both.

    Raises:
        ValueError: If a shape, the real or complex kind, a device, a length or the backend is
            wrong.

    Source: Gu & Dao 2023 (arXiv 2312.00752), section 4.4 and appendix E.4 ("Mamba-S4"); Gu et al.
    2022 (arXiv 2206.11893), S4D.
    """
    _check(u, delta, A, B, C, D, z, initial_state, cu_seqlens)
    total = u.shape[1]
    if cu_seqlens is not None:
        if lengths is not None:
            raise ValueError("lengths and cu_seqlens are both given; choose one")
        u, lengths = unpack(u, cu_seqlens)
        z = None if z is None else unpack(z, cu_seqlens, longest=u.shape[1])[0]
    elif lengths is not None:
        lengths = check_lengths(lengths, u)
    args = (u, delta, A, B, C, D, z, initial_state, lengths, reverse)
    chosen = _choose(backend, u, A)
    if chosen == "reference":
        y, final_state = lti_scan_reference(*args)
    elif chosen == "torch":
        y, final_state = lti_scan_chunked(*args)
    else:
        if chosen == "triton" and torch.compiler.is_dynamo_compiling():
            args = (to_rows(u), *args[1:])  # else copied unseen, and again in the backward pass
        y, final_state, _ = lti_scan_op(*args, chosen)
    if cu_seqlens is not None:
        y = pack(y, cu_seqlens, total)
    return y, final_state if output_final_state else None


def _choose(backend: Backend | None, u: Tensor, A: Tensor) -> Backend:
    chosen = choose(backend, u)
    size = A.shape[1] * (2 if A.is_complex() else 1)
    if chosen != "triton" or size <= TRITON_MAX_STATE:
        return chosen
    if backend is None:
        return "torch"
    raise ValueError(
        f"backend 'triton' cannot run: A has {A.shape[1]} {'complex' if A.is_complex() else 'real'}"
        f" states, {size} real numbers; its kernels take up to {TRITON_MAX_STATE}. Use "
        "backend='torch', or None, which chooses it"
    )


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
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
        "delta": (delta, (channels,), False),
        "A": (A, (channels, state), kind),
        "B": (B, (channels, state), kind),
        "C": (C, (channels, state), kind),
        "D": (D, (channels,), False),
        "z": (z, (batch, steps, channels), False),
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
