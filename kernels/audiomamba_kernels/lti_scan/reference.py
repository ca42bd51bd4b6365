"""The time-invariant scan as a loop over time: what the fast forms are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lti_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return (y, final state); arguments as in `lti_scan`."""
    dtype = u.dtype
    u = u.to(A.real.dtype)
    decay, gain = torch.exp(delta[:, None] * A), delta[:, None] * B  # (channels, state)
    h = initial_state if initial_state is not None else A.new_zeros(u.shape[0], *A.shape)
    ys = []
    for t in range(u.shape[1]):
        h = decay * h + gain * u[:, t, :, None]
        y = (C * h).sum(-1)
        ys.append(2 * y.real if A.is_complex() else y)
    y = torch.stack(ys, dim=1)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    return y.to(dtype), h
