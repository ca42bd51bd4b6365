"""A pre-norm residual block around a mixer, and an MLP where the mixer has none of its own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from audiomamba.config import Tier
from audiomamba.layers.attention import Attention
from audiomamba.layers.mamba import Mamba
from audiomamba.layers.s4 import S4


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, d_model: int, expand: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, expand * d_model)
        self.down = nn.Linear(expand * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_model) to (..., d_model)."""
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class Block(nn.Module):
    """x + mixer(norm(x)); then, for "s4" and "attention", x + mlp(norm(x)).

    Its state is its mixer's.
    """

    def __init__(self, d_model: int, tier: Tier) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mixer: Mamba | S4 | Attention
        if tier.mixer == "s4":
            self.mixer = S4(d_model, tier.d_state)
        elif tier.mixer == "attention":
            self.mixer = Attention(d_model, tier.n_heads, tier.context)
        else:
            self.mixer = Mamba(
                d_model,
                tier.d_state,
                tier.d_conv,
                tier.expand,
                selective=tier.mixer == "s6",
                complex=tier.complex,
            )
        self.mlp_norm: nn.RMSNorm | None = None
        if tier.mixer in ("s4", "attention"):
            self.mlp_norm = nn.RMSNorm(d_model, eps=1e-5)
            self.mlp = MLP(d_model, tier.expand)

    def initial_state(self, batch: int) -> Any:
        """Return the mixer's state for silence before the first sample."""
        return self.mixer.initial_state(batch)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map x (batch, time, d_model) to (y of the same shape, state after the last step)."""
        y, state = self.mixer(self.norm(x), state)
        x = x + y
        if self.mlp_norm is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x, state
