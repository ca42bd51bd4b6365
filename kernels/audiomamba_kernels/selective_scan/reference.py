"""The selective scan as a loop over time: what the fast forms are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return (y, final state); arguments as in `selective_scan`."""
    dtype = u.dtype
    u, delta = _wide(u), _wide(delta)
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    B, C = _wide(B), _wide(C)
    h = initial_state if initial_state is not None else A.new_zeros(u.shape[0], *A.shape)
    ys = []
    for t in range(u.shape[1]):
        d = delta[:, t, :, None]  # (batch, channels, 1)
        h = torch.exp(d * A) * h + d * u[:, t, :, None] * B[:, t, None, :]
        y = (C[:, t, None, :] * h).sum(-1)
        ys.append(2 * y.real if A.is_complex() else y)
    y = torch.stack(ys, dim=1)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(_wide(z))
    return y.to(dtype), h


def _wide(x: Tensor) -> Tensor:
    """Compute in float32 at least; float64 stays."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
