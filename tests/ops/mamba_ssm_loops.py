"""mamba_ssm's and causal_conv1d's functions as loops, written from the formulas."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tests.ops.mamba_ssm_cases import BATCH, CHANNELS, RANK, STEPS, N


def loop_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """One channel and one step at a time, over a vector of states."""
    batch, channels, steps = u.shape

    def at(x: Tensor, b: int, d: int, t: int) -> Tensor:
        if x.dim() == 2:
            return x[d]
        rows = x[b] if x.dim() == 3 else x[b, d * x.shape[1] // channels]
        if A.is_complex() and not x.is_complex():
            return torch.complex(rows[:, 2 * t], rows[:, 2 * t + 1])
        return rows[:, t]

    outs, states = [], []
    for b, d in itertools.product(range(batch), range(channels)):
        h = torch.zeros_like(A[d])
        for t in range(steps):
            step = delta[b, d, t]
            if delta_bias is not None:
                step = step + delta_bias[d]
            if delta_softplus:
                step = torch.log1p(torch.exp(step))
            h = torch.exp(step * A[d]) * h + step * at(B, b, d, t) * u[b, d, t]
            y = (at(C, b, d, t) * h).sum()
            y = 2 * y.real if A.is_complex() else y
            if D is not None:
                y = y + D[d] * u[b, d, t]
            if z is not None:
                y = y * z[b, d, t] * torch.sigmoid(z[b, d, t])
            outs.append(y)
        states.append(h)
    out = torch.stack(outs).view(batch, channels, steps)
    return (out, torch.stack(states).view(batch, channels, -1)) if return_last_state else out


def loop_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    (batch, channels, steps), width = x.shape, weight.shape[1]
    zeros = x.new_zeros(batch, channels, width - 1)
    padded = torch.cat([zeros if initial_states is None else initial_states, x], dim=2)
    outs = []
    for b, t in itertools.product(range(batch), range(steps)):
        y = torch.zeros_like(x[b, :, t])
        for k in range(width):
            source = t - (width - 1) + k
            if seq_idx is None or (source >= 0 and seq_idx[b, source] == seq_idx[b, t]):
                y = y + weight[:, k] * padded[b, :, t + k]
        y = y if bias is None else y + bias
        y = y if activation is None else y * torch.sigmoid(y)
        outs.append(y if seq_idx is None or seq_idx[b, t] >= 0 else y * 0)
    out = torch.stack(outs).view(batch, steps, channels).mT
    return (out, padded[..., steps:]) if return_final_states else out


def loop_inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    def normed(x: Tensor, weight: Tensor | None) -> Tensor:  # (batch, n, time)
        if weight is None:
            return x
        square = torch.einsum("bnt,bnt->bt", x, x) / x.shape[1] + b_c_dt_rms_eps
        return torch.einsum("bnt,bt,n->bnt", x, square**-0.5, weight)

    def taken(rows: Tensor, bias: Tensor | None) -> Tensor:
        rows = rows if bias is None else rows + bias[:, None]
        if A.is_complex():  # neighbouring rows become neighbouring steps
            rows = rows.reshape(BATCH, N, 2, STEPS).mT.reshape(BATCH, N, 2 * STEPS)
        return rows

    x, z = xz[:, :CHANNELS], xz[:, CHANNELS:]
    u = loop_conv(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    assert isinstance(u, Tensor)
    size = A.shape[1] * (2 if A.is_complex() else 1)
    rows = torch.einsum("rd,bdt->brt", x_proj_weight, u)
    delta = torch.einsum("dr,brt->bdt", delta_proj_weight, rows[:, :RANK])
    B = taken(rows[:, RANK : RANK + size], B_proj_bias) if B is None else B
    C = taken(rows[:, -size:], C_proj_bias) if C is None else C
    B, C = normed(B, b_rms_weight), normed(C, c_rms_weight)
    delta = normed(delta, dt_rms_weight)
    y = loop_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    assert isinstance(y, Tensor)
    out = torch.einsum("ed,bdt->bte", out_proj_weight, y)
    return out if out_proj_bias is None else out + out_proj_bias
