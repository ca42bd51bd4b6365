"""The state after a convolution."""

from __future__ import annotations

import torch
from torch import Tensor


def final_state(
    x: Tensor, initial_state: Tensor | None, lengths: Tensor | None, past: int, reverse: bool
) -> Tensor:
    """Return the last `past` processed samples, oldest first, (batch, past, channels).

    Where a row is shorter than that, the younger samples of its initial state come first.
    """
    batch, steps, channels = x.shape
    if lengths is None and steps >= past:
        recent = x[:, :past].flip(1) if reverse else x[:, steps - past :]
        return recent.clone(memory_format=torch.contiguous_format)
    if initial_state is None:
        initial_state = x.new_zeros(batch, past, channels)
    if lengths is None:
        recent = x.flip(1) if reverse else x
        return torch.cat([initial_state[:, steps:], recent], dim=1)
    # In processing order; negative in the initial state.
    place = lengths[:, None] - past + torch.arange(past, device=x.device)
    t = lengths[:, None] - 1 - place if reverse else place
    every = torch.arange(batch, device=x.device)[:, None]
    return torch.where(
        (place >= 0)[..., None],
        x[every, t.clamp(0, steps - 1)],
        initial_state[every, (place + past).clamp(0, past - 1)],
    )
