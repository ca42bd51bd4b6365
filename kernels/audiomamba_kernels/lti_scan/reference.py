"""The time-invariant scan as a loop over time: what the fast forms are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.ragged import zero_padding
from audiomamba_kernels.selective_scan.reference import compute_dtypes


def lti_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return (y, final state); arguments as in `lti_scan`."""
    batch, steps, _ = u.shape
    dtype, (real, kind) = u.dtype, compute_dtypes(u, A)
    u = zero_padding(u, lengths).to(real)
    delta, A, B, C = delta.to(real)[:, None], A.to(kind), B.to(kind), C.to(kind)
    decay, gain = torch.exp(delta * A), delta * B  # (channels, state)
    h = A.new_zeros(batch, *A.shape) if initial_state is None else initial_state.to(kind)
    ys = {}
    for t in reversed(range(steps)) if reverse else range(steps):
        new = decay * h + gain * u[:, t, :, None]
        h = new if lengths is None else torch.where((t < lengths)[:, None, None], new, h)
        y = (C * h).sum(-1)
        ys[t] = 2 * y.real if A.is_complex() else y
    y = torch.stack([ys[t] for t in range(steps)], dim=1)
    if D is not None:
        y = y + D.to(real) * u
    if z is not None:
        y = y * F.silu(zero_padding(z, lengths).to(real))
    return zero_padding(y, lengths).to(dtype), h
