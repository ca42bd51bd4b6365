"""One sample for a batch of streams: the scans and the convolution as recurrences, for generation.

Each function is one kernel launch on a GPU. State is an argument and a result; `out_*` names a
tensor to write the new state into, which may be the old state itself, so that a CUDA graph can hold
many steps. A step has no gradient: the scans do, and run on one sample as well as on a million.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from audiomamba_kernels.backend import Backend, choose
from audiomamba_kernels.step.reference import (
    causal_conv1d_step_reference,
    lti_mamba_step_reference,
    selective_scan_step_reference,
)

__all__ = ["causal_conv1d_step", "lti_mamba_step", "selective_scan_step"]

Expected = dict[str, tuple[Tensor | None, tuple[int, ...], bool]]


def selective_scan_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    state: Tensor,
    delta_softplus: bool = False,
    out_state: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `selective_scan` for one sample, gate included.

        delta = softplus(delta + delta_bias)
        h     = exp(delta A) h + delta B u
        y     = (C h, or 2 Re(C h) if A is complex, + D u) * silu(z)

    Floating dtypes may differ from argument to argument: everything is computed in float32, or in
    float64 if u is.

    Args:
        u: Input, (batch, channels).
        delta: Step sizes before bias and softplus, shape of u.
        A: (channels, state), real or complex. A complex `state` counts conjugate pairs.
        B: (batch, state), real or complex as A.
        C: As B.
        D: Skip weights (channels,) or None.
        z: Gate, shape of u, or None.
        delta_bias: (channels,) or None.
        state: h, (batch, channels, state), real or complex as A.
        delta_softplus: Whether softplus is applied to delta + delta_bias.
        out_state: Where the new h is written, as `state`, or `state` itself; None is a new tensor.
        backend: None (fastest), "triton", or plain PyTorch by any of its names "cpu", "torch" and
            "reference".

    Returns:
        y in u's shape and dtype, and the new state: out_state, or else float32 or complex64
        (float64 or complex128 if u is float64).

    Raises:
        ValueError: If a shape, the real or complex kind, a device or the backend is wrong, or a
            gradient is asked for.
    """
    _check_input("u", u)
    batch, channels = u.shape
    n, kind = A.shape[-1], A.is_complex()
    shape = (batch, channels, n)
    _check(
        u,
        {
            "delta": (delta, (batch, channels), False),
            "A": (A, (channels, n), kind),
            "B": (B, (batch, n), kind),
            "C": (C, (batch, n), kind),
            "D": (D, (channels,), False),
            "z": (z, (batch, channels), False),
            "delta_bias": (delta_bias, (channels,), False),
            "state": (state, shape, kind),
            "out_state": (out_state, shape, kind),
        },
    )
    args = (u, delta, A, B, C, D, z, delta_bias, state, delta_softplus)
    if choose(backend, u) == "triton":
        from audiomamba_kernels.step import triton_step

        out_state = _new_state(u, shape, kind) if out_state is None else out_state
        return triton_step.selective_scan_step(*args, out_state), out_state
    y, new = selective_scan_step_reference(*args)
    return y, new if out_state is None else out_state.copy_(new)


def causal_conv1d_step(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    out_state: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `causal_conv1d` for one sample.

    Args:
        x: (batch, channels).
        state: The width - 1 samples before x, oldest first, (batch, width - 1, channels).
        weight: (channels, width); the last tap meets x.
        bias: (channels,) or None.
        activation: "silu" or None.
        out_state: Where the last width - 1 samples are written, as `state`, or `state` itself; None
            is a new tensor.
        backend: As in `selective_scan_step`.

    Returns:
        y in x's shape and dtype, and the new state: out_state, or else in state's dtype.

    Raises:
        ValueError: If a shape, the activation, a device or the backend is wrong, or a gradient is
            asked for.
    """
    _check_input("x", x)
    batch, channels = x.shape
    width = weight.shape[-1]
    shape = (batch, width - 1, channels)
    _check(
        x,
        {
            "weight": (weight, (channels, width), False),
            "bias": (bias, (channels,), False),
            "state": (state, shape, False),
            "out_state": (out_state, shape, False),
        },
    )
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; choose None or 'silu'")
    if choose(backend, x) == "triton":
        from audiomamba_kernels.step import triton_step

        out_state = state.new_empty(shape) if out_state is None else out_state
        y = triton_step.causal_conv1d_step(x, state, weight, bias, activation == "silu", out_state)
        return y, out_state
    y, new = causal_conv1d_step_reference(x, state, weight, bias, activation)
    return y, new if out_state is None else out_state.copy_(new)


def lti_mamba_step(
    x: Tensor,
    z: Tensor | None,
    conv_state: Tensor,
    ssm_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decay: Tensor,
    gain: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    out_conv_state: Tensor | None = None,
    out_ssm_state: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a time-invariant Mamba block between its projections: convolution, SiLU, scan and gate.

        u = silu(bias + sum_k weight_k x_{t - (width - 1) + k})
        h = decay h + gain u
        y = (C h, or 2 Re(C h) if C is complex, + D u) * silu(z)

    It is `causal_conv1d` with SiLU and then `lti_scan`, for one sample and without an exponential
    of the parameters; u is not rounded to x's dtype in between.

    Args:
        x: (batch, channels).
        z: Gate, shape of x, or None.
        conv_state: The width - 1 samples before x, oldest first, (batch, width - 1, channels).
        ssm_state: h, (batch, channels, state), real or complex as decay.
        weight: (channels, width); the last tap meets x.
        bias: (channels,) or None.
        decay: exp(delta A), (channels, state), real or complex. A complex `state` counts conjugate
            pairs.
        gain: delta B, as decay.
        C: As decay.
        D: Skip weights (channels,) or None.
        out_conv_state: Where the new conv_state is written, as `conv_state`, or `conv_state`
            itself; None is a new tensor.
        out_ssm_state: The same for ssm_state.
        backend: As in `selective_scan_step`.

    Returns:
        y in x's shape and dtype; the new conv_state: out_conv_state, or else in conv_state's dtype;
        the new ssm_state: out_ssm_state, or else float32 or complex64 (float64 or complex128 if x
        is float64).

    Raises:
        ValueError: If a shape, the real or complex kind, a device or the backend is wrong, or a
            gradient is asked for.
    """
    _check_input("x", x)
    batch, channels = x.shape
    n, kind, width = decay.shape[-1], decay.is_complex(), weight.shape[-1]
    conv_shape, ssm_shape = (batch, width - 1, channels), (batch, channels, n)
    _check(
        x,
        {
            "z": (z, (batch, channels), False),
            "conv_state": (conv_state, conv_shape, False),
            "ssm_state": (ssm_state, ssm_shape, kind),
            "weight": (weight, (channels, width), False),
            "bias": (bias, (channels,), False),
            "decay": (decay, (channels, n), kind),
            "gain": (gain, (channels, n), kind),
            "C": (C, (channels, n), kind),
            "D": (D, (channels,), False),
            "out_conv_state": (out_conv_state, conv_shape, False),
            "out_ssm_state": (out_ssm_state, ssm_shape, kind),
        },
    )
    args = (x, z, conv_state, ssm_state, weight, bias, decay, gain, C, D)
    if choose(backend, x) == "triton":
        from audiomamba_kernels.step import triton_step

        conv = conv_state.new_empty(conv_shape) if out_conv_state is None else out_conv_state
        ssm = _new_state(x, ssm_shape, kind) if out_ssm_state is None else out_ssm_state
        return triton_step.lti_mamba_step(*args, conv, ssm), conv, ssm
    y, conv, ssm = lti_mamba_step_reference(*args)
    conv = conv if out_conv_state is None else out_conv_state.copy_(conv)
    return y, conv, ssm if out_ssm_state is None else out_ssm_state.copy_(ssm)


def _new_state(x: Tensor, shape: tuple[int, ...], complex: bool) -> Tensor:
    return x.new_empty(shape, dtype=torch.complex64 if complex else torch.float32)


def _check_input(name: str, x: Tensor) -> None:
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)}; it must be real, (batch, channels): "
            "a step takes one sample"
        )


def _check(x: Tensor, expected: Expected) -> None:
    """Hold each tensor to its shape, whether it is complex, and the device of x."""
    for name, (tensor, shape, complex) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
        if tensor.is_complex() != complex or not (complex or tensor.is_floating_point()):
            kind = "complex, as the others are" if complex else "real floating point"
            raise ValueError(f"{name} is {tensor.dtype}; it must be {kind}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {x.device}")
    tensors = [x, *(tensor for tensor, _, _ in expected.values() if tensor is not None)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            "a step has no gradient: run it under torch.no_grad(), or use the scan or convolution "
            "of which it is a step"
        )
