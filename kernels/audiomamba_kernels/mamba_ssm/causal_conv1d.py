"""causal_conv1d.causal_conv1d_fn and causal_conv1d_update."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.causal_conv1d import causal_conv1d
from audiomamba_kernels.mamba_ssm.cache import check_integers, mask_rows, read_rows, write_rows
from audiomamba_kernels.step import causal_conv1d_step

Activation = Literal["silu", "swish"]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the convolution of `audiomamba_kernels.causal_conv1d`.

    Args:
        x: (batch, channels, time).
        weight: (channels, width).
        bias: (channels,) or None.
        seq_idx: (batch, time), integers: samples of other numbers than its own do not reach a
            sample, and where the number is negative the output is zero. None is one sequence a row.
        initial_states: The width - 1 samples before x, (batch, channels, width - 1); not with
            seq_idx.
        return_final_states: Whether the last width - 1 samples are returned too; not with seq_idx.
        final_states_out: (batch, channels, width - 1), where they are written, or None.
        activation: None, or "silu" by either name.

    Returns:
        out in x's shape and dtype, or (out, final states); these are final_states_out if it is
        given.

    Raises:
        ValueError: If a shape or the activation is wrong, or seq_idx meets a state.
    """
    _check_activation(activation)
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (batch, channels, time)")
    (batch, channels, _), width = x.shape, _width(weight, x.shape[1])
    past = (batch, channels, width - 1)
    _check("bias", bias, (channels,))
    _check("initial_states", initial_states, past)
    _check("final_states_out", final_states_out, past)
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise ValueError("seq_idx cannot be combined with initial_states or final states")
        return _sequences(x, weight, bias, seq_idx, activation is not None)
    out, states = causal_conv1d(
        x.mT,
        weight,
        bias,
        activation=None if activation is None else "silu",
        initial_state=None if initial_states is None else initial_states.mT,
        output_final_state=return_final_states,
    )
    if states is None:
        return out.mT
    states = states.mT.to(x.dtype)
    return out.mT, states if final_states_out is None else final_states_out.copy_(states)


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next samples and move them into conv_state; there is no gradient.

    Args:
        x: (batch, channels), or (batch, channels, time).
        conv_state: The samples before x, oldest first, (batch, channels, length), length >= width -
            1; overwritten.
        weight: (channels, width).
        bias: (channels,) or None.
        activation: None, or "silu" by either name.
        cache_seqlens: (batch,), integers: conv_state is a ring, and x is written from cache_seqlens
            % length on. None is no ring: samples move up.
        conv_state_indices: (batch,), integers: the row of conv_state that belongs to each row of x,
            then conv_state has any number of rows. Where it is negative the output is zero and no
            state changes. None is row by row.

    Returns:
        out in x's shape and dtype.

    Raises:
        ValueError: If a shape, the activation or a kind of number is wrong.
    """
    _check_activation(activation)
    if x.dim() not in (2, 3):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must be (batch, channels) or (batch, channels, time)"
        )
    samples = x[..., None] if x.dim() == 2 else x
    batch, channels, steps = samples.shape
    width = _width(weight, channels)
    rows = "rows" if conv_state_indices is not None else batch
    wanted = f"({rows}, {channels}, length) with length at least {width - 1}"
    if (
        conv_state.dim() != 3
        or conv_state.shape[1] != channels
        or conv_state.shape[2] < width - 1
        or (conv_state_indices is None and conv_state.shape[0] != batch)
    ):
        raise ValueError(
            f"conv_state has shape {tuple(conv_state.shape)}; it must be {wanted}, one less than "
            "the width"
        )
    check_integers("cache_seqlens", cache_seqlens, batch)
    check_integers("conv_state_indices", conv_state_indices, batch)
    length = conv_state.shape[2]
    old = read_rows(conv_state, conv_state_indices)
    if cache_seqlens is None:
        past = old[..., length - (width - 1) :]
        new = torch.cat([old, samples.to(old.dtype)], dim=-1)[..., steps:]
    else:
        offsets = torch.arange(1 - width, steps, device=x.device)
        ring = (
            (cache_seqlens[:, None] + offsets).remainder(length)[:, None].expand(-1, channels, -1)
        )
        past = old.gather(2, ring[..., : width - 1])
        kept = min(steps, length)
        new = old.scatter(2, ring[..., -kept:], samples[..., -kept:].to(old.dtype))
    act: Literal["silu"] | None = None if activation is None else "silu"
    if x.dim() == 2:
        out = causal_conv1d_step(x, past.mT, weight, bias, activation=act)[0]
    else:
        out = causal_conv1d(x.mT, weight, bias, activation=act, initial_state=past.mT)[0].mT
    write_rows(conv_state, conv_state_indices, new)
    return mask_rows(out, conv_state_indices)


def _sequences(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, silu: bool
) -> Tensor:
    """Convolve tap by tap, each only where the sample it reaches is of the same sequence."""
    batch, _, steps = x.shape
    if seq_idx.shape != (batch, steps):
        raise ValueError(
            f"seq_idx has shape {tuple(seq_idx.shape)}; it must be {(batch, steps)}, (batch, time)"
        )
    width = weight.shape[1]
    wide = x if x.dtype == torch.float64 else x.float()
    weight = weight.to(wide.dtype)
    y = wide * weight[:, -1:]
    for back in range(1, min(width, steps)):
        same = seq_idx[:, None, back:] == seq_idx[:, None, :-back]
        reached = torch.where(same, wide[..., :-back], 0)
        y = y + F.pad(reached * weight[:, width - 1 - back, None], (back, 0))
    if bias is not None:
        y = y + bias[:, None].to(wide.dtype)
    y = F.silu(y) if silu else y
    return torch.where(seq_idx[:, None] >= 0, y, 0).to(x.dtype)


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation is {activation!r}; choose None, 'silu' or 'swish'")


def _width(weight: Tensor, channels: int) -> int:
    """Return the width of a filter for so many channels."""
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; it must be ({channels}, width), width >= 1"
        )
    return weight.shape[1]


def _check(name: str, x: Tensor | None, shape: tuple[int, ...]) -> None:
    if x is not None and tuple(x.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {shape}")
    if x is not None and not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}; it must be real floating point")
