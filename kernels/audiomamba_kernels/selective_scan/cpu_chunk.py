"""The recurrence over one chunk of a tile, forward and backward, real and complex.

The loop over states is outermost and that over channels innermost: a state's decay, its input and
its share of the output are a few vector instructions on neighbouring channels, and what they read
stays in the cache. B and C (state, CHUNK) hold what changes with time, B_constant and C_constant
(state, WIDTH) what does not, and of each pair one is zero.
"""

from __future__ import annotations

from audiomamba_kernels.jit import jit_disjoint
from audiomamba_kernels.tiles import WIDTH, Array
from audiomamba_kernels.vector_math import exp2, sincos


@jit_disjoint
def scan_real(
    delta: Array,
    drive: Array,
    rate: Array,
    B: Array,
    B_constant: Array,
    C: Array,
    C_constant: Array,
    h: Array,
    out: Array,
    steps: int,
) -> None:
    """Run h = 2^(delta rate) h + drive B, out += C h; h (state, WIDTH) is carried."""
    for n in range(len(h)):
        for i in range(steps):
            b, c = B[n, i], C[n, i]
            for j in range(WIDTH):
                a = exp2(delta[i, j] * rate[n, j])
                new = a * h[n, j] + drive[i, j] * (b + B_constant[n, j])
                h[n, j] = new
                out[i, j] += new * (c + C_constant[n, j])


@jit_disjoint
def scan_complex(
    delta: Array,
    drive: Array,
    rate: Array,
    turn: Array,
    B_re: Array,
    B_im: Array,
    B_constant_re: Array,
    B_constant_im: Array,
    C_re: Array,
    C_im: Array,
    C_constant_re: Array,
    C_constant_im: Array,
    h_re: Array,
    h_im: Array,
    out: Array,
    steps: int,
) -> None:
    """As `scan_real`, in parts; `turn` is the imaginary part of A, C that of `scale_output_map`."""
    for n in range(len(h_re)):
        for i in range(steps):
            b_re, b_im, c_re, c_im = B_re[n, i], B_im[n, i], C_re[n, i], C_im[n, i]
            for j in range(WIDTH):
                size = exp2(delta[i, j] * rate[n, j])
                sine, cosine = sincos(delta[i, j] * turn[n, j])
                a_re, a_im = size * cosine, size * sine
                re, im = h_re[n, j], h_im[n, j]
                new_re = a_re * re - a_im * im + drive[i, j] * (b_re + B_constant_re[n, j])
                new_im = a_re * im + a_im * re + drive[i, j] * (b_im + B_constant_im[n, j])
                h_re[n, j] = new_re
                h_im[n, j] = new_im
                out[i, j] += new_re * (c_re + C_constant_re[n, j])
                out[i, j] += new_im * (c_im + C_constant_im[n, j])


@jit_disjoint
def scan_real_backward(
    delta: Array,
    drive: Array,
    rate: Array,
    A: Array,
    B: Array,
    B_constant: Array,
    C: Array,
    C_constant: Array,
    before: Array,
    dout: Array,
    h: Array,
    decay: Array,
    out: Array,
    ddelta: Array,
    ddrive: Array,
    dh: Array,
    dA: Array,
    dB: Array,
    dC: Array,
    dB_constant: Array,
    dC_constant: Array,
    B_per_step: bool,
    C_per_step: bool,
    steps: int,
) -> None:
    """Run a chunk forward, from the state `before` it, then backward.

    dh (state, WIDTH) is the gradient of the state after the chunk, and becomes that of the state
    before it; h and decay (1 + CHUNK, WIDTH) are the states and decays of one n; out, ddelta,
    ddrive, dA and the constant gradients are added to.
    """
    zero = delta.dtype.type(0)
    for n in range(len(dh)):
        for j in range(WIDTH):
            h[0, j] = before[n, j]
            decay[steps, j] = 1
        for i in range(steps):
            b, c = B[n, i], C[n, i]
            for j in range(WIDTH):
                a = exp2(delta[i, j] * rate[n, j])
                new = a * h[i, j] + drive[i, j] * (b + B_constant[n, j])
                decay[i, j] = a
                h[i + 1, j] = new
                out[i, j] += new * (c + C_constant[n, j])
        for back in range(steps):
            i = steps - 1 - back
            b, c = B[n, i], C[n, i]
            sum_b, sum_c = zero, zero
            for j in range(WIDTH):
                g = dh[n, j] * decay[i + 1, j] + dout[i, j] * (c + C_constant[n, j])
                dh[n, j] = g
                sum_b += g * drive[i, j]
                sum_c += dout[i, j] * h[i + 1, j]
                ddrive[i, j] += g * (b + B_constant[n, j])
                dexponent = g * decay[i, j] * h[i, j]
                ddelta[i, j] += dexponent * A[n, j]
                dA[n, j] += dexponent * delta[i, j]
            dB[n, i], dC[n, i] = sum_b, sum_c
            if not B_per_step:
                for j in range(WIDTH):
                    dB_constant[n, j] += dh[n, j] * drive[i, j]
            if not C_per_step:
                for j in range(WIDTH):
                    dC_constant[n, j] += dout[i, j] * h[i + 1, j]
        for j in range(WIDTH):
            dh[n, j] *= decay[0, j]


@jit_disjoint
def scan_complex_backward(
    delta: Array,
    drive: Array,
    rate: Array,
    A_re: Array,
    A_im: Array,
    B_re: Array,
    B_im: Array,
    B_constant_re: Array,
    B_constant_im: Array,
    C_re: Array,
    C_im: Array,
    C_constant_re: Array,
    C_constant_im: Array,
    before_re: Array,
    before_im: Array,
    dout: Array,
    h_re: Array,
    h_im: Array,
    decay_re: Array,
    decay_im: Array,
    out: Array,
    ddelta: Array,
    ddrive: Array,
    dh_re: Array,
    dh_im: Array,
    dA_re: Array,
    dA_im: Array,
    dB_re: Array,
    dB_im: Array,
    dC_re: Array,
    dC_im: Array,
    dB_constant_re: Array,
    dB_constant_im: Array,
    dC_constant_re: Array,
    dC_constant_im: Array,
    B_per_step: bool,
    C_per_step: bool,
    steps: int,
) -> None:
    """As `scan_real_backward`, in parts.

    Gradients are dL/dRe + i dL/dIm, so that factors are conjugated.
    """
    zero = delta.dtype.type(0)
    for n in range(len(dh_re)):
        for j in range(WIDTH):
            h_re[0, j], h_im[0, j] = before_re[n, j], before_im[n, j]
            decay_re[steps, j], decay_im[steps, j] = 1, 0
        for i in range(steps):
            b_re, b_im, c_re, c_im = B_re[n, i], B_im[n, i], C_re[n, i], C_im[n, i]
            for j in range(WIDTH):
                size = exp2(delta[i, j] * rate[n, j])
                sine, cosine = sincos(delta[i, j] * A_im[n, j])
                a_re, a_im = size * cosine, size * sine
                re = a_re * h_re[i, j] - a_im * h_im[i, j]
                im = a_re * h_im[i, j] + a_im * h_re[i, j]
                re += drive[i, j] * (b_re + B_constant_re[n, j])
                im += drive[i, j] * (b_im + B_constant_im[n, j])
                decay_re[i, j], decay_im[i, j] = a_re, a_im
                h_re[i + 1, j], h_im[i + 1, j] = re, im
                out[i, j] += re * (c_re + C_constant_re[n, j]) + im * (c_im + C_constant_im[n, j])
        for back in range(steps):
            i = steps - 1 - back
            b_re, b_im, c_re, c_im = B_re[n, i], B_im[n, i], C_re[n, i], C_im[n, i]
            sum_b_re, sum_b_im, sum_c_re, sum_c_im = zero, zero, zero, zero
            for j in range(WIDTH):
                a_re, a_im = decay_re[i + 1, j], decay_im[i + 1, j]
                g_re = a_re * dh_re[n, j] + a_im * dh_im[n, j]
                g_im = a_re * dh_im[n, j] - a_im * dh_re[n, j]
                g_re += dout[i, j] * (c_re + C_constant_re[n, j])
                g_im += dout[i, j] * (c_im + C_constant_im[n, j])
                dh_re[n, j], dh_im[n, j] = g_re, g_im
                sum_b_re += g_re * drive[i, j]
                sum_b_im += g_im * drive[i, j]
                sum_c_re += dout[i, j] * h_re[i + 1, j]
                sum_c_im += dout[i, j] * h_im[i + 1, j]
                ddrive[i, j] += g_re * (b_re + B_constant_re[n, j])
                ddrive[i, j] += g_im * (b_im + B_constant_im[n, j])
                # What the decay made of the state before this step, conjugated.
                re = decay_re[i, j] * h_re[i, j] - decay_im[i, j] * h_im[i, j]
                im = decay_re[i, j] * h_im[i, j] + decay_im[i, j] * h_re[i, j]
                dexponent_re = g_re * re + g_im * im
                dexponent_im = g_im * re - g_re * im
                ddelta[i, j] += dexponent_re * A_re[n, j] + dexponent_im * A_im[n, j]
                dA_re[n, j] += dexponent_re * delta[i, j]
                dA_im[n, j] += dexponent_im * delta[i, j]
            dB_re[n, i], dB_im[n, i], dC_re[n, i], dC_im[n, i] = (
                sum_b_re, sum_b_im, sum_c_re, sum_c_im,
            )  # fmt: skip
            if not B_per_step:
                for j in range(WIDTH):
                    dB_constant_re[n, j] += dh_re[n, j] * drive[i, j]
                    dB_constant_im[n, j] += dh_im[n, j] * drive[i, j]
            if not C_per_step:
                for j in range(WIDTH):
                    dC_constant_re[n, j] += dout[i, j] * h_re[i + 1, j]
                    dC_constant_im[n, j] += dout[i, j] * h_im[i + 1, j]
        for j in range(WIDTH):
            re = decay_re[0, j] * dh_re[n, j] + decay_im[0, j] * dh_im[n, j]
            dh_im[n, j] = decay_re[0, j] * dh_im[n, j] - decay_im[0, j] * dh_re[n, j]
            dh_re[n, j] = re
