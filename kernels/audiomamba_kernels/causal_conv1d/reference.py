"""The convolution as a loop over time: what the fast forms are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.ragged import zero_padding


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Return (y, final state); arguments as in `causal_conv1d`."""
    (batch, steps, channels), width = x.shape, weight.shape[1]
    x = zero_padding(x, lengths)
    past = x.new_zeros(batch, width - 1, channels) if initial_state is None else initial_state
    wide = compute_dtype(x)
    ys = {}
    for t in reversed(range(steps)) if reverse else range(steps):
        window = torch.cat([past, x[:, t, None]], dim=1)  # (batch, width, channels)
        y = (weight.to(wide).T * window.to(wide)).sum(1)
        if bias is not None:
            y = y + bias.to(wide)
        ys[t] = F.silu(y) if silu else y
        new = window[:, 1:]
        past = new if lengths is None else torch.where((t < lengths)[:, None, None], new, past)
    y = torch.stack([ys[t] for t in range(steps)], dim=1)
    return zero_padding(y, lengths).to(x.dtype), past


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of all arithmetic."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
