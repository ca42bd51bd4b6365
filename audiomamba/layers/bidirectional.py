"""Mamba in both directions, inside a block or outside; `ahead` frames may be seen but not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from audiomamba.layers.mamba import Mamba, MambaState
from audiomamba_kernels.ragged import zero_padding


class InnerBidirectional(nn.Module):
    """Two directions between the same projections, with one gate; their mean goes on.

    Each has its own convolution, step sizes, B, C, A and D. The backward one begins at a row's last
    valid frame, from silence.

    Args:
        d_model: Width of input and output.
        options: Those of `Mamba`.

    Source: Zhu et al. 2024 (arXiv 2401.09417), algorithm 1, in the form "v2" of their code, with
    the mean of both directions (`if_divide_out`), as ConMamba takes it.
    """

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__()
        self.forwards = Mamba(d_model, **options)
        self.backwards = Mamba(d_model, **options)
        del self.backwards.in_proj, self.backwards.out_proj  # those of the other are used

    def initial_state(self, batch: int) -> MambaState:
        """Return the forward direction's state for silence."""
        return self.forwards.initial_state(batch)

    def forward(
        self,
        x: Tensor,
        state: MambaState | None = None,
        *,
        lengths: Tensor | None = None,
        ahead: int = 0,
    ) -> tuple[Tensor, MambaState]:
        """Map x (batch, time, d_model) to y of the same shape.

        Args:
            x: Input, time > ahead.
            state: What the forward direction carries; None is silence.
            lengths: As in `Mamba.forward`.
            ahead: Frames at the end that the returned state does not hold.

        Returns:
            y, and the forward direction's state after the first time - ahead frames.
        """
        u, z = self.forwards.project(zero_padding(x, lengths))
        y, state = look_ahead(self.forwards.recur, (u, z), state, lengths, ahead)
        back, _ = self.backwards.recur(u, z, lengths=lengths, reverse=True)
        return self.forwards.out_proj((y + back) / 2), state


class OuterBidirectional(nn.Module):
    """Two whole Mamba blocks, one in each direction, concatenated and mapped to d_model.

    Args:
        d_model: Width of input and output.
        options: Those of `Mamba`.

    Source: Zhang et al. 2024 (arXiv 2405.12609), ExtBiMamba.
    """

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__()
        self.forwards = Mamba(d_model, **options)
        self.backwards = Mamba(d_model, **options)
        self.out_proj = nn.Linear(2 * d_model, d_model)

    def initial_state(self, batch: int) -> MambaState:
        """Return the forward direction's state for silence."""
        return self.forwards.initial_state(batch)

    def forward(
        self,
        x: Tensor,
        state: MambaState | None = None,
        *,
        lengths: Tensor | None = None,
        ahead: int = 0,
    ) -> tuple[Tensor, MambaState]:
        """Do as `InnerBidirectional.forward`; y is finite but not zero in the padding."""
        y, state = look_ahead(self.forwards, (x,), state, lengths, ahead)
        back, _ = self.backwards(x, lengths=lengths, reverse=True)
        return self.out_proj(torch.cat([y, back], dim=-1)), state


def look_ahead(
    run: Callable[..., tuple[Tensor, MambaState]],
    inputs: tuple[Tensor, ...],
    state: MambaState | None,
    lengths: Tensor | None,
    ahead: int,
) -> tuple[Tensor, MambaState]:
    """Run `run(*inputs, state, lengths=lengths)`; the state is that before the last `ahead`."""
    if not ahead:
        return run(*inputs, state, lengths=lengths)
    kept = inputs[0].shape[1] - ahead
    now = None if lengths is None else lengths.clamp(max=kept)
    later = None if lengths is None else (lengths - kept).clamp(min=0)
    y, state = run(*(x[:, :kept] for x in inputs), state, lengths=now)
    beyond, _ = run(*(x[:, kept:] for x in inputs), state, lengths=later)
    return torch.cat([y, beyond], dim=1), state
