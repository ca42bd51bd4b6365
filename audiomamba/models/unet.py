"""SaShiMi's multi-rate stack: blocks at one rate around a stack at a lower rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audiomamba.config import Tier
from audiomamba.layers.block import Block


class UNetState(NamedTuple):
    """What a tier carries; `inner` is the next tier's UNetState, or the centre's block states."""

    down: Any  # states of the blocks before the inner net
    frame: Tensor  # (batch, pool, d_model): the last frame before pooling, filled as samples come
    inner: Any
    late: Tensor  # (batch, pool, d_model): what the inner net says to the next frame
    up: Any  # states of the blocks after the inner net


class Stack(nn.Module):
    """Blocks in sequence; the state is the tuple of theirs."""

    period = 1

    def __init__(self, d_model: int, tier: Tier) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(d_model, tier) for _ in range(tier.n_layers))

    def initial_state(self, batch: int) -> Any:
        """Return the blocks' states for silence."""
        blocks: Any = self.blocks
        return tuple(block.initial_state(batch) for block in blocks)

    def forward(
        self, x: Tensor, state: Any = None, hidden: list[Tensor] | None = None
    ) -> tuple[Tensor, Any]:
        """Map x (batch, time, d_model) to (y of the same shape, state after the last step).

        What each block puts out is appended to `hidden`.
        """
        states = []
        for i, block in enumerate(self.blocks):
            x, s = block(x, None if state is None else state[i])
            states.append(s)
            if hidden is not None:
                hidden.append(x)
        return x, tuple(states)

    def step(self, x: Tensor, state: Any, phase: int) -> tuple[Tensor, Any]:
        """Map one sample (batch, 1, d_model); a plain stack has no phase."""
        y, state = self(x, state)
        return y, state


class UNet(nn.Module):
    """Blocks, pooling, an inner net at the lower rate, unpooling one frame late, skip, blocks.

    Frame i of the inner net sees samples up to the end of frame i and speaks to the samples of
    frame i + 1, so that the whole is causal and one sample can be computed at a time.

    Args:
        d_model: Width at this rate; the inner net is twice as wide.
        tiers: This tier and those inside it.
        pools: One factor for each joint.

    Unlike SaShiMi's U-Net variant, one skip joins the two paths of a tier (blocks are residual),
    and norms are RMSNorm.

    Source: Goel et al. 2022 (arXiv 2202.09729), section 4.1 and figure 1, with blocks on both
    paths.
    """

    def __init__(self, d_model: int, tiers: tuple[Tier, ...], pools: tuple[int, ...]) -> None:
        super().__init__()
        self.pool = pools[0]
        self.down = Stack(d_model, tiers[0])
        self.pooling = nn.Linear(self.pool * d_model, 2 * d_model)
        self.inner: UNet | Stack = build(2 * d_model, tiers[1:], pools[1:])
        self.unpooling = nn.Linear(2 * d_model, self.pool * d_model)
        self.up = Stack(d_model, tiers[0])

    @property
    def period(self) -> int:
        """Samples in one frame of the centre; `forward` takes multiples of it."""
        return self.pool * self.inner.period

    def initial_state(self, batch: int) -> UNetState:
        """Return the state for silence."""
        frame = self.pooling.weight.new_zeros(
            batch, self.pool, self.pooling.in_features // self.pool
        )
        inner = self.inner.initial_state(batch)
        return UNetState(
            self.down.initial_state(batch), frame, inner, frame, self.up.initial_state(batch)
        )

    def forward(
        self, x: Tensor, state: UNetState | None = None, hidden: list[Tensor] | None = None
    ) -> tuple[Tensor, UNetState]:
        """Map x (batch, time, d_model) to (y of the same shape, state after the last step).

        What each block puts out, at its own rate, is appended to `hidden`.

        Raises:
            ValueError: If time is not a multiple of `period`.
        """
        batch, steps, d_model = x.shape
        if steps % self.period:
            raise ValueError(f"time is {steps}; it must be a multiple of the period {self.period}")
        state = self.initial_state(batch) if state is None else state
        h, down = self.down(x, state.down, hidden)
        frames = self.pooling(h.reshape(batch, -1, self.pool * d_model))
        low, inner = self.inner(
            frames.to(h.dtype), state.inner, hidden
        )  # the residual stream keeps its dtype
        says = self.unpooling(low).view(batch, -1, self.pool, d_model).to(h.dtype)
        late = torch.cat([state.late[:, None].to(h.dtype), says[:, :-1]], dim=1)
        y, up = self.up(late.view(batch, steps, d_model) + h, state.up, hidden)
        dtype = state.late.dtype
        return y, UNetState(down, h[:, -self.pool :].to(dtype), inner, says[:, -1].to(dtype), up)

    def step(self, x: Tensor, state: UNetState, phase: int) -> tuple[Tensor, UNetState]:
        """Map one sample (batch, 1, d_model); `phase` is its time index modulo the period."""
        at = phase % self.pool
        h, down = self.down.step(x, state.down, phase)
        y, up = self.up.step(state.late[:, at : at + 1] + h, state.up, phase)
        frame = torch.cat([state.frame[:, :at], h, state.frame[:, at + 1 :]], dim=1)
        inner, late = state.inner, state.late
        if at == self.pool - 1:
            low, inner = self.inner.step(
                self.pooling(frame.flatten(1))[:, None], inner, phase // self.pool
            )
            late = self.unpooling(low).view_as(late)
        return y, UNetState(down, frame, inner, late, up)


def build(d_model: int, tiers: tuple[Tier, ...], pools: tuple[int, ...]) -> UNet | Stack:
    """Return the net for these tiers: a `Stack` if there is one, else a `UNet`."""
    return UNet(d_model, tiers, pools) if pools else Stack(d_model, tiers[0])
