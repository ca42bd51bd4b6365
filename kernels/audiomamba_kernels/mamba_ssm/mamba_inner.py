"""mamba_ssm.ops.selective_scan_interface.mamba_inner_fn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from audiomamba_kernels.causal_conv1d import causal_conv1d
from audiomamba_kernels.mamba_ssm.selective_scan import scan


def mamba_inner_fn(
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
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Run a Mamba block from behind its input projection: convolution, SiLU, scan, gate, output.

    S is `state`, or 2 `state` if A is complex.

    Args:
        xz: (batch, 2 * channels, time): the input, and the gate behind it.
        conv1d_weight: (channels, 1, width).
        conv1d_bias: (channels,) or None.
        x_proj_weight: (rank + S + S, channels); rows for delta, B, C. A map that is given, not
            projected, has no rows.
        delta_proj_weight: (channels, rank).
        out_proj_weight: (out, channels).
        out_proj_bias: (out,) or None.
        A: (channels, state), real or complex.
        B: As in `selective_scan_fn`; None takes it from the projection, where real and imaginary
            part of a complex one stand in neighbouring rows.
        C: As B.
        D: (channels,) or None.
        delta_bias: (channels,) or None.
        B_proj_bias: (S,), added to a projected B, or None.
        C_proj_bias: (S,), added to a projected C, or None.
        delta_softplus: Whether softplus is applied to delta + delta_bias.
        checkpoint_lvl: 1 computes convolution and projections again in the backward pass, which
            saves two tensors of half the size of xz; 0 keeps them.
        b_rms_weight: (state,), weight of an RMS norm of B over its states, A real, or None.
        c_rms_weight: The same of C.
        dt_rms_weight: (channels,), weight of an RMS norm of delta over its channels, or None.
        b_c_dt_rms_eps: What the norms add to the mean square.

    Returns:
        (batch, time, out).

    Raises:
        ValueError: If a shape, a dtype or checkpoint_lvl is wrong.
    """
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"checkpoint_lvl is {checkpoint_lvl!r}; choose 0 or 1")
    if A.dim() != 2:
        raise ValueError(f"A has shape {tuple(A.shape)}; it must be (channels, state)")
    if xz.dim() != 3 or xz.shape[1] != 2 * A.shape[0]:
        raise ValueError(
            f"xz has shape {tuple(xz.shape)}; it must be (batch, {2 * A.shape[0]}, time), twice "
            "the channels of A"
        )
    channels, state = A.shape
    _check(xz, "conv1d_weight", conv1d_weight, (channels, 1, -1))
    _check(xz, "delta_proj_weight", delta_proj_weight, (channels, -1), multiplied=True)
    _check(xz, "x_proj_weight", x_proj_weight, (-1, channels), multiplied=True)
    _check(xz, "out_proj_weight", out_proj_weight, (-1, channels), multiplied=True)
    _check(xz, "out_proj_bias", out_proj_bias, (len(out_proj_weight),), multiplied=True)
    rank = delta_proj_weight.shape[1]
    size = state * (2 if A.is_complex() else 1)
    rows = rank + size * ((B is None) + (C is None))
    if x_proj_weight.shape[0] < rows:
        raise ValueError(
            f"x_proj_weight has {x_proj_weight.shape[0]} rows; it must have at least {rows}: "
            f"{rank} for delta and {size} for each of B and C that is not given"
        )
    _check(xz, "B_proj_bias", B_proj_bias, (size,))
    _check(xz, "C_proj_bias", C_proj_bias, (size,))
    _check(xz, "b_rms_weight", b_rms_weight, (state,))
    _check(xz, "c_rms_weight", c_rms_weight, (state,))
    _check(xz, "dt_rms_weight", dt_rms_weight, (channels,))
    norm = partial(_rms_norm, eps=b_c_dt_rms_eps)

    def gated_scan(xz: Tensor) -> Tensor:
        x, z = xz.chunk(2, dim=1)
        x = causal_conv1d(x.mT, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")[0].mT
        projected = _project(x_proj_weight, x)  # (batch, rows, time)
        delta = norm(_project(delta_proj_weight, projected[:, :rank]), dt_rms_weight)
        B_rows, C_rows = projected[:, rank : rank + size], projected[:, -size:]
        return scan(
            x,
            delta,
            A,
            norm(_map(B_rows, A, B_proj_bias) if B is None else B, b_rms_weight),
            norm(_map(C_rows, A, C_proj_bias) if C is None else C, c_rms_weight),
            D,
            z,
            delta_bias,
            delta_softplus,
        )[0]

    recompute = checkpoint_lvl and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    y = _recomputed(gated_scan, xz) if recompute else gated_scan(xz)
    weight = out_proj_weight.mT.expand(y.shape[0], -1, -1)
    # A batched product reads y as it lies.
    return (
        torch.bmm(y.mT, weight)
        if out_proj_bias is None
        else torch.baddbmm(out_proj_bias, y.mT, weight)
    )


def _check(
    xz: Tensor, name: str, x: Tensor | None, shape: tuple[int, ...], *, multiplied: bool = False
) -> None:
    """Hold an argument to its shape, -1 being any size; a factor or sum of products to the dtype.

    autocast gives those one dtype itself.
    """
    if x is None:
        return
    if x.dim() != len(shape) or any(
        size not in (-1, found) for size, found in zip(shape, x.shape, strict=True)
    ):
        sizes = ", ".join("any" if size == -1 else str(size) for size in shape)
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be ({sizes})")
    if not x.is_floating_point():
        raise ValueError(f"{name} is {x.dtype}; it must be real floating point")
    if multiplied and x.dtype != xz.dtype and not torch.is_autocast_enabled(xz.device.type):
        raise ValueError(f"{name} is {x.dtype}; it must be {xz.dtype} as xz is")


def _project(weight: Tensor, x: Tensor) -> Tensor:
    """Map channels, (batch, channels, time) -> (batch, rows, time); time stays contiguous."""
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


def _map(rows: Tensor, A: Tensor, bias: Tensor | None) -> Tensor:
    """Return a projected B or C, (batch, state, time), of A's kind."""
    if bias is not None:
        rows = rows + bias[:, None].to(rows.dtype)
    if not A.is_complex():
        return rows
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return torch.complex(rows[:, 0::2], rows[:, 1::2])


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Normalise (..., n, time) over n, in float32 at least; nothing to do without a weight."""
    if weight is None:
        return x
    if x.is_complex() or x.dim() < 3:
        raise ValueError(
            f"an RMS norm is over a real map that varies in time; this one is {x.dtype} of shape "
            f"{tuple(x.shape)}"
        )
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-2, keepdim=True) + eps)
    return (wide * scale * weight[:, None]).to(x.dtype)


def _recomputed(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run fn and keep for the backward pass nothing of it but what the scan made."""
    contexts = partial(create_selective_checkpoint_contexts, _keep_the_scan)
    y: Tensor = checkpoint(
        fn, x, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
    )
    return y


def _keep_the_scan(context: Any, op: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    keep = op.name() == "audiomamba::selective_scan"
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
