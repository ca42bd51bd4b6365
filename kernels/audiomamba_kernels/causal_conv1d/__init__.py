"""The short causal depthwise convolution before a scan."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.backend import Backend, choose

__all__ = ["causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Convolve each channel with its own short filter over the present and the past.

        y_t = activation(bias + sum_k weight_k x_{t - (width - 1) + k})

    Args:
        x: (batch, time, channels), time >= 1.
        weight: (channels, width); the last tap meets the present sample.
        bias: (channels,) or None.
        activation: "silu" or None.
        initial_state: The width - 1 samples before x, oldest first, (batch, width - 1, channels);
            None is zeros.
        output_final_state: Whether the last width - 1 samples are returned.
        backend: None (fastest), "torch" or "reference".

    Returns:
        y in x's shape and dtype, and the final state (batch, width - 1, channels) or None.

    Raises:
        ValueError: If a shape, the activation or the backend is wrong.
    """
    batch, steps, channels = x.shape
    width = weight.shape[-1]
    if weight.shape != (channels, width):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be ({channels}, width)")
    if initial_state is not None and initial_state.shape != (batch, width - 1, channels):
        raise ValueError(
            f"initial_state has shape {tuple(initial_state.shape)}; it must be "
            f"{(batch, width - 1, channels)}"
        )
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; choose None or 'silu'")
    if steps < 1:
        raise ValueError("x has no time steps; the convolution needs at least one")
    padded = _with_past(x, initial_state, width - 1)
    run = _loop if choose(backend) == "reference" else _shifts
    y = run(padded, weight, bias, steps)
    if activation == "silu":
        y = F.silu(y)
    return y.to(x.dtype), padded[:, steps:].clone() if output_final_state else None


def _with_past(x: Tensor, past: Tensor | None, width: int) -> Tensor:
    """Put `width` past samples before x; time becomes the contiguous axis, as the scans like."""
    x = x.transpose(1, 2)
    if past is None:
        return F.pad(x.transpose(0, 1), (width, 0)).permute(1, 2, 0)
    past = past.to(x.dtype).transpose(1, 2)
    return torch.cat([past.transpose(0, 1), x.transpose(0, 1)], dim=2).permute(1, 2, 0)


def _loop(padded: Tensor, weight: Tensor, bias: Tensor | None, steps: int) -> Tensor:
    width = weight.shape[-1]
    y = torch.stack([(padded[:, t : t + width] * weight.T).sum(1) for t in range(steps)], dim=1)
    return y if bias is None else y + bias


def _shifts(padded: Tensor, weight: Tensor, bias: Tensor | None, steps: int) -> Tensor:
    """A sum of shifted copies: any memory layout, and one pass over memory once compiled."""
    y = padded[:, :steps] * weight[:, 0]
    for k in range(1, weight.shape[-1]):
        y = y + padded[:, k : k + steps] * weight[:, k]
    return y if bias is None else y + bias
