"""The selective scan as a loop over time: what the fast forms are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.ragged import zero_padding


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Return (y, final state); arguments as in `selective_scan`."""
    batch, steps, _ = u.shape
    dtype, (real, kind) = u.dtype, compute_dtypes(u, A)
    u, delta = zero_padding(u, lengths).to(real), zero_padding(delta, lengths).to(real)
    B, C = (zero_padding(x, lengths if x.dim() == 3 else None).to(kind) for x in (B, C))
    A = A.to(kind)
    if delta_bias is not None:
        delta = delta + delta_bias.to(real)
    if delta_softplus:
        delta = F.softplus(delta)
    h = A.new_zeros(batch, *A.shape) if initial_state is None else initial_state.to(kind)
    ys = {}
    for t in reversed(range(steps)) if reverse else range(steps):
        d = delta[:, t, :, None]  # (batch, channels, 1)
        B_t, C_t = (x[:, t, None, :] if x.dim() == 3 else x for x in (B, C))
        new = torch.exp(d * A) * h + d * u[:, t, :, None] * B_t
        h = new if lengths is None else torch.where((t < lengths)[:, None, None], new, h)
        y = (C_t * h).sum(-1)
        ys[t] = 2 * y.real if A.is_complex() else y
    y = torch.stack([ys[t] for t in range(steps)], dim=1)
    if D is not None:
        y = y + D.to(real) * u
    if z is not None:
        y = y * F.silu(zero_padding(z, lengths).to(real))
    return zero_padding(y, lengths).to(dtype), h


def compute_dtypes(u: Tensor, A: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the real dtype of all arithmetic and the dtype of states: real, or its complex."""
    if u.dtype == torch.float64:
        return torch.float64, torch.complex128 if A.is_complex() else torch.float64
    return torch.float32, torch.complex64 if A.is_complex() else torch.float32
