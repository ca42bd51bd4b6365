"""Conformer's convolution module, with padding masked and its past carried."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiomamba_kernels.ragged import zero_padding


class ConvModule(nn.Module):
    """Norm, pointwise map and GLU, depthwise convolution, norm, SiLU, pointwise map.

    The second norm is over channels, not over batch and time (Conformer's BatchNorm), whose
    statistics padding would enter. The state is what the depthwise convolution has seen last,
    (batch, kernel - 1, d_model) if causal, else (batch, (kernel - 1) / 2, d_model).

    Args:
        d_model: Width of input and output.
        kernel: Width of the depthwise convolution; odd unless causal.
        causal: Whether it sees the present and the past only; if not, it sees as far ahead as back.

    Source: Gulati et al. 2020 (arXiv 2005.08100), section 2.2; LayerNorm as in SpeechBrain's.
    """

    def __init__(self, d_model: int, kernel: int, *, causal: bool) -> None:
        super().__init__()
        self.past = kernel - 1 if causal else kernel // 2
        self.future = kernel - 1 - self.past
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.in_proj = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(d_model, d_model, kernel, groups=d_model)
        self.depthwise_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.out_proj = nn.Linear(d_model, d_model)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros."""
        return self.norm.weight.new_zeros(batch, self.past, self.norm.weight.shape[0])

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        ahead: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Map x (batch, time, d_model) to (y of the same shape, state before the last `ahead`).

        Padding has no effect on valid frames; y is finite but not zero there.
        """
        batch, steps, _ = x.shape
        state = self.initial_state(batch) if state is None else state
        h = zero_padding(F.glu(self.in_proj(self.norm(zero_padding(x, lengths))), dim=-1), lengths)
        seen = torch.cat([state.to(h.dtype), h], dim=1)
        y = self.depthwise(F.pad(seen, (0, 0, 0, self.future)).mT).mT
        y = self.out_proj(F.silu(self.depthwise_norm(y.to(x.dtype))))
        kept = steps - ahead
        return y, seen[:, kept : kept + self.past].to(state.dtype)
