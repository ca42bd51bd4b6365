"""The selective scan in plain PyTorch: chunks in sequence, logarithmic depth inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from audiomamba_kernels.recurrence import linear_recurrence

# The expanded state of a chunk, (batch, chunk, channels, state), holds about this many elements.
CHUNK_ELEMENTS = 1 << 24


def selective_scan_chunked(
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
    """Return (y, final state); arguments as in `selective_scan`.

    Memory is that of one chunk's states: the backward pass recomputes each chunk from the state
    carried into it.
    """
    batch, steps, _ = u.shape
    h = initial_state if initial_state is not None else A.new_zeros(batch, *A.shape)
    chunk = max(1, CHUNK_ELEMENTS // (batch * A.numel()))
    recompute = steps > chunk and torch.is_grad_enabled()
    ys = []
    for start in range(0, steps, chunk):
        at = slice(start, start + chunk)
        args = (u[:, at], delta[:, at], A, B[:, at], C[:, at], delta_bias, delta_softplus, h)
        if recompute:  # nothing in it is random
            y, h = checkpoint(_chunk, *args, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = _chunk(*args)
        ys.append(y)
    y = torch.cat(ys, dim=1) if len(ys) > 1 else ys[0]
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    return y.to(u.dtype), h


def _chunk(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    h: Tensor,
) -> tuple[Tensor, Tensor]:
    real = A.real.dtype
    delta = delta.to(real)
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = F.softplus(delta)
    a = torch.exp(delta[..., None] * A)  # (batch, chunk, channels, state)
    b = (delta * u.to(real))[..., None] * B.to(A.dtype)[:, :, None, :]
    states = linear_recurrence(a, b, h)
    y = (states * C.to(A.dtype)[:, :, None, :]).sum(-1)
    return (2 * y.real if A.is_complex() else y), states[:, -1]
