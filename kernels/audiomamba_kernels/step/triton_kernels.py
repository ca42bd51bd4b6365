"""The Triton kernels of the steps: a program for a stream and a block of channels, in float32.

A program reads what it needs of the old state before it writes the new one, so that both may be the
same memory.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from audiomamba_kernels.selective_scan.triton_math import (
    LOG2E,
    decay,
    multiply_add,
    read,
    sigmoid,
    softplus,
)


@triton.jit
def _convolve(
    x_ptr,
    weight_ptr,
    bias_ptr,
    state_ptr,
    out_ptr,
    row,
    c,
    m_c,
    x_row,
    state_row,
    state_time,
    state_channel,
    out_row,
    out_time,
    out_channel,
    WIDTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Return the convolution at channels c, float32, and move the samples on by one."""
    w = tl.arange(0, BLOCK_W)[:, None]
    m = (w < WIDTH) & m_c[None, :]
    o = c.to(tl.int64)[None, :]
    x = tl.load(x_ptr + row * x_row + c, mask=m_c, other=0.0).to(tl.float32)
    past = tl.load(
        state_ptr + row * state_row + w * state_time + o * state_channel,
        mask=m & (w < WIDTH - 1),
        other=0.0,
    ).to(tl.float32)
    window = tl.where(w == WIDTH - 1, x[None, :], past)
    weight = tl.load(weight_ptr + o * WIDTH + w, mask=m, other=0.0).to(tl.float32)
    y = tl.sum(weight * window, axis=0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + c, mask=m_c, other=0.0).to(tl.float32)
    # Another thread may still have to read what is overwritten here.
    tl.debug_barrier()
    p_out = out_ptr + row * out_row + (w - 1) * out_time + o * out_channel
    tl.store(p_out, window, mask=m & (w > 0))
    return y


@triton.jit
def _load(p, m, COMPLEX: tl.constexpr):
    """Load (re, im), which stand side by side; im is re if there is none."""
    re = tl.load(p, mask=m, other=0.0).to(tl.float32)
    if COMPLEX:
        return re, tl.load(p + 1, mask=m, other=0.0).to(tl.float32)
    else:
        return re, re


@triton.jit
def _store(p, re, im, m, COMPLEX: tl.constexpr):
    tl.store(p, re, mask=m)
    if COMPLEX:
        tl.store(p + 1, im, mask=m)


@triton.jit
def _output(u, h_re, h_im, C_re, C_im, c, m_c, D_ptr, z_row_ptr, y_row_ptr, COMPLEX: tl.constexpr):
    """Read the state, add the skip, gate, store."""
    y = read(h_re, h_im, C_re, C_im, COMPLEX)
    if D_ptr is not None:
        y += tl.load(D_ptr + c, mask=m_c, other=0.0).to(tl.float32) * u
    if z_row_ptr is not None:
        z = tl.load(z_row_ptr + c, mask=m_c, other=0.0).to(tl.float32)
        y *= z * sigmoid(z)
    tl.store(y_row_ptr + c, y, mask=m_c)


@triton.jit
def selective_scan_step_kernel(
    u_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    bias_ptr,
    state_ptr,
    out_ptr,
    y_ptr,
    channels,
    n,
    u_row,
    delta_row,
    B_row,
    C_row,
    z_row,
    state_row,
    state_channel,
    state_n,
    out_row,
    out_channel,
    out_n,
    SOFTPLUS: tl.constexpr,
    COMPLEX: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Take one step of h = exp(delta A) h + delta B u."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_N)[:, None]
    m_c = c < channels
    m_k = k < n
    m = m_k & m_c[None, :]
    o = c.to(tl.int64)[None, :]

    u = tl.load(u_ptr + row * u_row + c, mask=m_c, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + row * delta_row + c, mask=m_c, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        delta += tl.load(bias_ptr + c, mask=m_c, other=0.0).to(tl.float32)
    if SOFTPLUS:
        delta = softplus(delta)
    A_re, A_im = _load(A_ptr + (o * n + k) * PARTS, m, COMPLEX)
    B_re, B_im = _load(B_ptr + row * B_row + k * PARTS, m_k, COMPLEX)
    C_re, C_im = _load(C_ptr + row * C_row + k * PARTS, m_k, COMPLEX)
    h_re, h_im = _load(state_ptr + row * state_row + o * state_channel + k * state_n, m, COMPLEX)
    a_re, a_im = decay(A_re * LOG2E, A_im, delta[None, :], COMPLEX)
    gain = (delta * u)[None, :]
    h_re, h_im = multiply_add(a_re, a_im, h_re, h_im, B_re * gain, B_im * gain, COMPLEX)
    _store(out_ptr + row * out_row + o * out_channel + k * out_n, h_re, h_im, m, COMPLEX)
    z_row_ptr = None if z_ptr is None else z_ptr + row * z_row
    _output(u, h_re, h_im, C_re, C_im, c, m_c, D_ptr, z_row_ptr, y_ptr + row * channels, COMPLEX)


@triton.jit
def causal_conv1d_step_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    state_ptr,
    out_ptr,
    y_ptr,
    channels,
    x_row,
    state_row,
    state_time,
    state_channel,
    out_row,
    out_time,
    out_channel,
    SILU: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Take one step of the convolution."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    y = _convolve(
        x_ptr,
        weight_ptr,
        bias_ptr,
        state_ptr,
        out_ptr,
        row,
        c,
        m_c,
        x_row,
        state_row,
        state_time,
        state_channel,
        out_row,
        out_time,
        out_channel,
        WIDTH,
        BLOCK_W,
    )
    if SILU:
        y *= sigmoid(y)
    tl.store(y_ptr + row * channels + c, y, mask=m_c)


@triton.jit
def lti_mamba_step_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    conv_ptr,
    out_conv_ptr,
    decay_ptr,
    gain_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    ssm_ptr,
    out_ssm_ptr,
    y_ptr,
    channels,
    n,
    x_row,
    conv_row,
    conv_time,
    conv_channel,
    out_conv_row,
    out_conv_time,
    out_conv_channel,
    z_row,
    ssm_row,
    ssm_channel,
    ssm_n,
    out_ssm_row,
    out_ssm_channel,
    out_ssm_n,
    COMPLEX: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Take one step of the convolution and of h = decay h + gain u."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_N)[:, None]
    m_c = c < channels
    m = (k < n) & m_c[None, :]
    o = c.to(tl.int64)[None, :]

    u = _convolve(
        x_ptr,
        weight_ptr,
        bias_ptr,
        conv_ptr,
        out_conv_ptr,
        row,
        c,
        m_c,
        x_row,
        conv_row,
        conv_time,
        conv_channel,
        out_conv_row,
        out_conv_time,
        out_conv_channel,
        WIDTH,
        BLOCK_W,
    )
    u *= sigmoid(u)
    o_k = (o * n + k) * PARTS
    a_re, a_im = _load(decay_ptr + o_k, m, COMPLEX)
    b_re, b_im = _load(gain_ptr + o_k, m, COMPLEX)
    C_re, C_im = _load(C_ptr + o_k, m, COMPLEX)
    h_re, h_im = _load(ssm_ptr + row * ssm_row + o * ssm_channel + k * ssm_n, m, COMPLEX)
    v = u[None, :]
    h_re, h_im = multiply_add(a_re, a_im, h_re, h_im, b_re * v, b_im * v, COMPLEX)
    p_out = out_ssm_ptr + row * out_ssm_row + o * out_ssm_channel + k * out_ssm_n
    _store(p_out, h_re, h_im, m, COMPLEX)
    z_row_ptr = None if z_ptr is None else z_ptr + row * z_row
    _output(u, h_re, h_im, C_re, C_im, c, m_c, D_ptr, z_row_ptr, y_ptr + row * channels, COMPLEX)


def compile_cases() -> list[tuple[Any, dict[str, str], dict[str, Any], int]]:
    """Return what `tests/ops/test_compile_targets.py` compiles: each kernel, real and complex."""
    kernels = (selective_scan_step_kernel, causal_conv1d_step_kernel, lti_mamba_step_kernel)
    sizes = {"BLOCK_C": 64, "BLOCK_N": 16, "BLOCK_W": 4, "WIDTH": 4}
    constants = sizes | {"SOFTPLUS": True, "SILU": True}
    cases = []
    for kernel in kernels:
        for complex in (False, True) if "COMPLEX" in kernel.arg_names else (False,):
            values = {k: v for k, v in constants.items() if k in kernel.arg_names}
            if "COMPLEX" in kernel.arg_names:
                values["COMPLEX"] = complex
            pointers = "*bf16" if not complex else "*fp32"
            signature = {
                name: ("*fp32" if "state" in name or "out" in name else pointers)
                if name.endswith("_ptr")
                else "i64"
                for name in kernel.arg_names
                if name not in values
            }
            cases.append((kernel, signature, values, 1))
    return cases
