"""What a chunk of Q steps does to input and state, as the matrices that the other kernels read.

With p = exp(delta A), g = delta B and h the state before the chunk, complex numbers laid out as
neighbouring real and imaginary parts (S real numbers in all), the chunk does

    y = u inside + (C h) write,    h after = p^Q h + g (u read)

where inside[s, t] = k[t - s], k[j] = 2 Re(sum C g p^j), read[s] = p^(Q-1-s), and write[t] = p^(t+1)
with the factor and sign that make a real product of 2 Re(...). For time that runs backwards,
memory stays in order and the matrices are flipped. All of it is small, and computed in float64:
powers are exponentials of multiples of delta A, or one such times another, never running products.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from audiomamba_kernels.lti_scan.compile_cases import Case, cases
from audiomamba_kernels.lti_scan.triton_tiles import (
    join,
    multiply,
    multiply_conjugate,
    split,
)


@triton.jit
def _powers(log_re, log_im, exponents, COMPLEX: tl.constexpr):
    """p^e, exponents a number or (E, 1) of float64, as a pair of (E, N)."""
    size = tl.exp(exponents * log_re)
    if COMPLEX:
        return size * tl.cos(exponents * log_im), size * tl.sin(exponents * log_im)
    else:
        return size, size


@triton.jit
def _load_parameters(
    delta, A, B, C, channel, width, S: tl.constexpr, COMPLEX: tl.constexpr
):  # fmt: skip
    """Delta, A, B and C of a channel in float64, pairs of (1, N); zeros beyond `width`."""
    step = tl.load(delta + channel).to(tl.float64)
    number = tl.arange(0, S)[None, :]
    place = channel * width + number
    A = tl.load(A + place, mask=number < width, other=0.0).to(tl.float64)
    B = tl.load(B + place, mask=number < width, other=0.0).to(tl.float64)
    C = tl.load(C + place, mask=number < width, other=0.0).to(tl.float64)
    return step, split(A, COMPLEX), split(B, COMPLEX), split(C, COMPLEX)


@triton.jit(do_not_specialize=["width"])
def maps_kernel(
    delta, A, B, C, gain, wide_C, inside, read, write, late_read, late_write, powers, chunk_powers,
    width,
    K: tl.constexpr, R: tl.constexpr, Q: tl.constexpr, S: tl.constexpr,
    COMPLEX: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Write K rows of each of a channel's maps; `late` ones have each power p^e times e.

    delta is (channels,), A, B and C (channels, width), a complex one counting its parts; gain, g,
    and wide_C are (channels, S), inside (channels, Q, Q), the reads (channels, Q, S), the writes
    (channels, S, Q), powers (channels, Q + 1, S) from p^0 to p^Q, and chunk_powers (channels,
    R + 1, S) from p^0 by p^Q to p^(R Q). Programs are channels * max(Q, R) / K.
    """
    blocks: tl.constexpr = (Q if Q > R else R) // K
    first = tl.program_id(0) % blocks * K
    channel = (tl.program_id(0) // blocks).to(tl.int64)
    step, a, b, c = _load_parameters(delta, A, B, C, channel, width, S, COMPLEX)
    log_re, log_im = step * a[0], step * a[1]
    gain_re, gain_im = step * b[0], step * b[1]
    state, number = tl.arange(0, S)[None, :], first + tl.arange(0, K)[:, None]
    if first == 0:
        row = channel * S + state
        tl.store(gain + row, join(gain_re, gain_im, COMPLEX))
        tl.store(wide_C + row, join(c[0], c[1], COMPLEX))

    if first < Q:  # a multiple of K
        p_re, p_im = _powers(log_re, log_im, number.to(tl.float64), COMPLEX)
        k_re, k_im = multiply(c[0], c[1], gain_re, gain_im, COMPLEX)
        k_re, k_im = multiply(k_re, k_im, p_re, p_im, COMPLEX)
        k = (2 if COMPLEX else 1) * tl.sum(k_re, 1)[:, None]
        # By lag and s: t = s + lag, or s - lag for time that runs backwards. Where t falls off one
        # end, the same s has as many t at the other that the input does not reach.
        s = tl.arange(0, Q)[None, :]
        t = (s - number) if REVERSE else (s + number)
        entries = tl.where((t >= 0) & (t < Q), k, 0.0).to(inside.dtype.element_ty)
        tl.store(inside + channel * (Q * Q) + s * Q + (t + Q) % Q, entries)

        place = channel * (Q * S) + (number if REVERSE else Q - 1 - number) * S + state
        p = join(p_re, p_im, COMPLEX)
        tl.store(read + place, p.to(read.dtype.element_ty))
        tl.store(late_read + place, (number * p).to(read.dtype.element_ty))
        place = powers + channel * ((Q + 1) * S) + number * S + state
        tl.store(place, p)

        one_re, one_im = _powers(log_re, log_im, 1.0, COMPLEX)
        p_re, p_im = multiply(p_re, p_im, one_re, one_im, COMPLEX)
        tl.store(place + S, join(p_re, p_im, COMPLEX), mask=number == Q - 1)
        if COMPLEX:  # the conjugate, twice
            p_re, p_im = 2 * p_re, -2 * p_im
        p = join(p_re, p_im, COMPLEX)
        place = channel * (Q * S) + state * Q + (Q - 1 - number if REVERSE else number)
        tl.store(write + place, p.to(write.dtype.element_ty))
        tl.store(late_write + place, ((number + 1) * p).to(write.dtype.element_ty))

    if first < R:
        place = chunk_powers + channel * ((R + 1) * S) + number * S + state
        p_re, p_im = _powers(log_re, log_im, (number * Q).to(tl.float64), COMPLEX)
        tl.store(place, join(p_re, p_im, COMPLEX), mask=number < R)
        all_re, all_im = _powers(log_re, log_im, 1.0 * Q, COMPLEX)
        p_re, p_im = multiply(p_re, p_im, all_re, all_im, COMPLEX)
        tl.store(place + S, join(p_re, p_im, COMPLEX), mask=number == R - 1)


@triton.jit(do_not_specialize=["batch", "channels", "tiles", "segments", "width"])
def parameters_kernel(
    delta, A, B, C, partial, dkernel, ddelta, dA, dB, dC, dD,
    batch, channels, tiles, segments, width,
    K: tl.constexpr, Q: tl.constexpr, S: tl.constexpr, COMPLEX: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a channel's delta, A, B, C and D.

    partial (batch, channels, tiles, 3 S) and dkernel (batch, channels, segments, Q) are what
    `gradients_kernel` and `ends_kernel` write.
    """
    channel = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, K)[:, None]
    state, lag = tl.arange(0, S)[None, :], tl.arange(0, Q)[None, :]
    of_gain = tl.zeros([K, S], tl.float32)
    of_C = tl.zeros([K, S], tl.float32)
    of_log = tl.zeros([K, S], tl.float32)
    first = 0
    while first < batch * tiles:
        i = first + number
        place = (
            partial + (((i // tiles) * channels + channel) * tiles + i % tiles) * (3 * S) + state
        )
        of_gain += tl.load(place, mask=i < batch * tiles, other=0.0)
        of_C += tl.load(place + S, mask=i < batch * tiles, other=0.0)
        of_log += tl.load(place + 2 * S, mask=i < batch * tiles, other=0.0)
        first += K
    of_k = tl.zeros([K, Q], tl.float32)
    first = 0
    while first < batch * segments:
        i = first + number
        place = dkernel + (((i // segments) * channels + channel) * segments + i % segments) * Q
        of_k += tl.load(place + lag, mask=i < batch * segments, other=0.0)
        first += K
    k = tl.sum(of_k, 0)[:, None].to(tl.float64)  # (Q, 1)
    # What D adds to y, k[0] adds too.
    exponent = tl.arange(0, Q)[:, None]
    tl.store(dD + channel, tl.sum(tl.where(exponent == 0, k, 0.0)))

    step, a, b, c = _load_parameters(delta, A, B, C, channel, width, S, COMPLEX)
    g_re, g_im = step * b[0], step * b[1]
    p_re, p_im = _powers(step * a[0], step * a[1], exponent.to(tl.float64), COMPLEX)
    if COMPLEX:
        k = 2 * k
    p_re, p_im = k * p_re, -k * p_im
    product_re, product_im = tl.sum(p_re, 0)[None, :], tl.sum(p_im, 0)[None, :]
    late_re = tl.sum(exponent * p_re, 0)[None, :]
    late_im = tl.sum(exponent * p_im, 0)[None, :]

    x_re, x_im = split(tl.sum(of_C, 0)[None, :].to(tl.float64), COMPLEX)
    y_re, y_im = multiply_conjugate(g_re, g_im, product_re, product_im, COMPLEX)
    place = channel * width + state
    here = state < width
    tl.store(dC + place, join(x_re + y_re, x_im + y_im, COMPLEX), mask=here)

    x_re, x_im = split(tl.sum(of_gain, 0)[None, :].to(tl.float64), COMPLEX)
    y_re, y_im = multiply_conjugate(c[0], c[1], product_re, product_im, COMPLEX)
    x_re, x_im = x_re + y_re, x_im + y_im
    tl.store(dB + place, join(step * x_re, step * x_im, COMPLEX), mask=here)
    of_step, _ = multiply_conjugate(b[0], b[1], x_re, x_im, COMPLEX)

    x_re, x_im = split(tl.sum(of_log, 0)[None, :].to(tl.float64), COMPLEX)
    y_re, y_im = multiply(c[0], c[1], g_re, g_im, COMPLEX)
    y_re, y_im = multiply_conjugate(y_re, y_im, late_re, late_im, COMPLEX)
    x_re, x_im = x_re + y_re, x_im + y_im
    tl.store(dA + place, join(step * x_re, step * x_im, COMPLEX), mask=here)
    y_re, _ = multiply_conjugate(a[0], a[1], x_re, x_im, COMPLEX)
    tl.store(ddelta + channel, tl.sum(of_step + y_re))


def compile_cases() -> Iterator[Case]:
    """Yield the kernels with types and constants, to be compiled."""
    yield from cases(maps_kernel, K=16)
    yield from cases(parameters_kernel, K=32)
