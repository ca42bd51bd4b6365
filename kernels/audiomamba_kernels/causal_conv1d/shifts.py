"""The convolution as a sum of shifted copies, in plain PyTorch: any device and memory layout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.causal_conv1d.reference import compute_dtype
from audiomamba_kernels.ragged import zero_padding


def causal_conv1d_shifts(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Return (y, final state); arguments as in `causal_conv1d`."""
    steps, past = x.shape[1], weight.shape[1] - 1
    padded = _with_past(zero_padding(x, lengths), initial_state, lengths, past, reverse)
    wide = compute_dtype(x)
    taps = weight.to(wide).flip(1) if reverse else weight.to(wide)
    y = padded[:, :steps].to(wide) * taps[:, 0]
    for k in range(1, past + 1):
        y = y + padded[:, k : k + steps].to(wide) * taps[:, k]
    if bias is not None:
        y = y + bias.to(wide)
    y = zero_padding(F.silu(y) if silu else y, lengths).to(x.dtype)
    if reverse:
        return y, padded[:, :past].flip(1)
    if lengths is None:
        return y, padded[:, steps:].clone()
    return y, padded.gather(1, _places(lengths, padded, past))


def _with_past(
    x: Tensor, state: Tensor | None, lengths: Tensor | None, past: int, reverse: bool
) -> Tensor:
    """Put the past samples before x, or, reversed, behind the valid part of each of its rows.

    Time becomes the contiguous axis, as the scans like it.
    """
    rows = x.permute(2, 0, 1)  # (channels, batch, time)
    if state is None or (reverse and lengths is not None):
        padded = F.pad(rows, (0, past) if reverse else (past, 0)).permute(1, 2, 0)
        if state is None or lengths is None:
            return padded
        return padded.scatter(1, _places(lengths, padded, past), state.flip(1))
    edge = (state.flip(1) if reverse else state).permute(2, 0, 1)
    return torch.cat([rows, edge] if reverse else [edge, rows], dim=2).permute(1, 2, 0)


def _places(lengths: Tensor, padded: Tensor, past: int) -> Tensor:
    """The `past` steps from each row's length on, (batch, past, channels)."""
    steps = lengths[:, None] + torch.arange(past, device=lengths.device)
    return steps[..., None].expand(-1, -1, padded.shape[2])
