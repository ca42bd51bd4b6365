"""Causal attention over a sliding window, with a window of keys and values as its state."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionState(NamedTuple):
    """The last context - 1 frames: keys before rotation, values, and which of them exist."""

    keys: Tensor  # (batch, context - 1, d_model)
    values: Tensor  # (batch, context - 1, d_model)
    filled: Tensor  # (batch, context - 1) bool


class Attention(nn.Module):
    """Multi-head causal attention with rotary positions (Su et al. 2021, arXiv 2104.09864).

    Each frame sees itself and the context - 1 frames before it, however the input is cut.

    Args:
        d_model: Width of input and output, a multiple of 2 * n_heads.
        n_heads: Number of heads.
        context: Frames seen, the present one included.
    """

    def __init__(self, d_model: int, n_heads: int = 8, context: int = 1024) -> None:
        super().__init__()
        if d_model % (2 * n_heads):
            raise ValueError(
                f"d_model is {d_model}; it must be a multiple of 2 * n_heads = {2 * n_heads}"
            )
        self.n_heads = n_heads
        self.context = context
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def initial_state(self, batch: int) -> AttentionState:
        """Return an empty window."""
        past = self.in_proj.weight.new_zeros(batch, self.context - 1, self.out_proj.in_features)
        return AttentionState(past, past, past.new_zeros(batch, self.context - 1, dtype=torch.bool))

    def forward(
        self, x: Tensor, state: AttentionState | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Map x (batch, time, d_model) to (y of the same shape, state after the last frame)."""
        batch, steps, _ = x.shape
        state = self.initial_state(batch) if state is None else state
        q, k, v = self.in_proj(x).chunk(3, dim=-1)
        k = torch.cat([state.keys.to(k.dtype), k], dim=1)
        v = torch.cat([state.values.to(v.dtype), v], dim=1)
        filled = torch.cat([state.filled, state.filled.new_ones(batch, steps)], dim=1)

        past = self.context - 1
        position = torch.arange(past + steps, device=x.device)
        age = position[past:, None] - position  # (steps, past + steps); 0 is the present
        seen = (age >= 0) & (age < self.context) & filled[:, None, None, :]
        y = F.scaled_dot_product_attention(
            rotate(self._heads(q), position[past:]),
            rotate(self._heads(k), position),
            self._heads(v),
            attn_mask=seen,
        )
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        kept = (
            k[:, steps:].to(state.keys.dtype),
            v[:, steps:].to(state.values.dtype),
            filled[:, steps:],
        )
        return y, AttentionState(*kept)

    def _heads(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        return x.view(batch, time, self.n_heads, -1).transpose(1, 2)  # (batch, heads, time, d_head)


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Turn pairs of features of x (batch, heads, time, d_head) by angles growing with position."""
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = position[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
