"""The steps in plain PyTorch: a scan or a convolution over one sample."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from audiomamba_kernels.causal_conv1d import causal_conv1d
from audiomamba_kernels.selective_scan import selective_scan


def selective_scan_step_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    state: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Return (y, state); arguments as in `selective_scan_step`."""
    y, new = selective_scan(
        u[:, None],
        delta[:, None],
        A,
        B[:, None],
        C[:, None],
        D,
        None if z is None else z[:, None],
        delta_bias,
        delta_softplus=delta_softplus,
        initial_state=state,
        output_final_state=True,
        backend="reference",
    )
    assert new is not None
    return y[:, 0], new


def causal_conv1d_step_reference(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Literal["silu"] | None,
) -> tuple[Tensor, Tensor]:
    """Return (y, state); arguments as in `causal_conv1d_step`."""
    y, new = causal_conv1d(
        x[:, None].to(_wide(x)),
        weight,
        bias,
        activation=activation,
        initial_state=state,
        output_final_state=True,
        backend="reference",
    )
    assert new is not None
    return y[:, 0].to(x.dtype), new.to(state.dtype)


def lti_mamba_step_reference(
    x: Tensor,
    z: Tensor | None,
    conv_state: Tensor,
    ssm_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decay: Tensor,
    gain: Tensor,
    C: Tensor,
    D: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, conv_state, ssm_state); arguments as in `lti_mamba_step`."""
    real = _wide(x)
    u, conv = causal_conv1d_step_reference(x.to(real), conv_state, weight, bias, "silu")
    kind = torch.promote_types(decay.dtype, real)  # complex stays complex
    h = decay.to(kind) * ssm_state.to(kind) + gain.to(kind) * u[:, :, None]
    y = (C.to(kind) * h).sum(-1)
    y = 2 * y.real if y.is_complex() else y
    if D is not None:
        y = y + D.to(real) * u
    if z is not None:
        y = y * F.silu(z.to(real))
    return y.to(x.dtype), conv, h


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
