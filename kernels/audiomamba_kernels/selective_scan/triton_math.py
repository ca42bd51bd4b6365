"""The mathematics of one step, shared by the Triton kernels of the selective scan.

Inside the kernels a tile is (state, channels), channels across the lanes of a warp: every thread
walks through time on its own, holding the states of its channels in registers, so that the
recurrence and the sums over the state need no exchange between threads. A complex number is a pair
of real tiles; for real A the second of the pair is the first, and unused.
"""

from __future__ import annotations

import triton
import triton.language as tl

from audiomamba_kernels import backend

INTERPRETED = tl.constexpr(backend.INTERPRETED)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """log(1 + e^x) to float32's accuracy at both ends; libm's log1p has no interpreter."""
    # e^-|x| with the whole powers of two taken off: x log2(e) alone would lose log2|x| bits.
    power = (-tl.abs(x) * LOG2E + 12582912.0) - 12582912.0
    r = (-tl.abs(x) - power * 0.693359375) + power * 0.00021219444005469057
    w = tl.exp2(power) * tl.exp2(r * LOG2E)
    # log1p(w) / w on [0, 1], least squares on Chebyshev nodes, relative error 1.1e-7.
    p = -0.0032563784685382346
    p = p * w + 0.019907160906681445
    p = p * w - 0.057064200725614994
    p = p * w + 0.10614264683477254
    p = p * w - 0.15311863100131068
    p = p * w + 0.19678117255651126
    p = p * w - 0.24954558870954296
    p = p * w + 0.333300040352106
    p = p * w - 0.4999990399276364
    p = p * w + 1.0
    return tl.maximum(x, 0.0) + p * w


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def sin_cos(angle):
    """Sine and cosine, absolute errors below 1e-7, of angles up to some thousand turns."""
    # Quarter turns are taken off in two parts, the first exact in float32 (Cody & Waite): an error
    # of the angle that is the same at every step would add up over the memory of the state.
    turns = angle * 0.6366197723675814 + 12582912.0
    quarters = turns - 12582912.0  # rounded to integers by the sum with 1.5 * 2^23
    r = angle - quarters * 1.5703125
    r = r - quarters * 0.0004838267923332751
    s = r * r
    # Least squares on Chebyshev nodes over an eighth of a turn to each side.
    sine = -0.00019503628475888736 * s + 0.008332033748791065
    sine = sine * s - 0.16666650638804853
    sine = r * (sine * s + 0.9999999969097353)
    cosine = 2.437946186572317e-05 * s - 0.0013886614085631076
    cosine = cosine * s + 0.04166661656645405
    cosine = cosine * s - 0.4999999961360871
    cosine = cosine * s + 1.0
    quadrant = quarters.to(tl.int32)
    odd = (quadrant & 1) == 1
    sin_sign = tl.where((quadrant & 2) == 2, -1.0, 1.0)
    cos_sign = tl.where(((quadrant + 1) & 2) == 2, -1.0, 1.0)
    return sin_sign * tl.where(odd, cosine, sine), cos_sign * tl.where(odd, sine, cosine)


@triton.jit
def decay(a_re, a_im, delta, COMPLEX: tl.constexpr):
    """exp(delta A), delta broadcast to A; a_re holds Re A log2(e), a_im Im A."""
    size = tl.exp2(a_re * delta)
    if COMPLEX:
        sine, cosine = sin_cos(a_im * delta)
        return size * cosine, size * sine
    else:
        return size, size


@triton.jit
def add_exactly(total, lost, x):
    """Return total + x and `lost` plus what rounding took off that sum (Knuth's two-sum)."""
    new = total + x
    added = new - total
    return new, lost + ((total - (new - added)) + (x - added))


@triton.jit
def decay_over(a_re, a_im, total, lost, COMPLEX: tl.constexpr):
    """exp(A (total + lost)): an angle of many turns rounded once would be wrong by whole digits."""
    if COMPLEX:
        d_re, d_im = decay(a_re, a_im, total, COMPLEX)
        angle = a_im * total
        rest = tl.fma(a_im, total, -angle) + a_im * lost
        return d_re - rest * d_im, d_im + rest * d_re
    else:
        return decay(a_re, a_im, total, COMPLEX)


@triton.jit
def multiply_add(a_re, a_im, h_re, h_im, b_re, b_im, COMPLEX: tl.constexpr):
    """A h + b."""
    if COMPLEX:
        return a_re * h_re - a_im * h_im + b_re, a_re * h_im + a_im * h_re + b_im
    else:
        re = a_re * h_re + b_re
        return re, re


@triton.jit
def read(h_re, h_im, c_re, c_im, COMPLEX: tl.constexpr):
    """The output of each channel, C h or 2 Re(C h)."""
    if COMPLEX:
        return 2 * tl.sum(c_re * h_re - c_im * h_im, axis=0)
    else:
        return tl.sum(c_re * h_re, axis=0)


@triton.jit
def tile_channels(BD: tl.constexpr, unaligned):
    """Return the channels of this program's tile, one after another across the lanes.

    `unaligned` is 0, but the compiler does not know: it would else have a thread read four
    neighbours at once, and so give it four channels and only a quarter of the states.
    """
    return tl.program_id(0) * BD + tl.arange(0, BD) + unaligned


@triton.jit
def load_tile(p, o_n, o_d, channels, N: tl.constexpr, COMPLEX: tl.constexpr):
    """Load planes (re, im) of a tile (state, channels); padding of either is zero."""
    offsets = o_n[:, None] * channels + o_d[None, :]
    mask = (o_n < N)[:, None] & (o_d < channels)[None, :]
    re = tl.load(p + offsets, mask, other=0.0).to(tl.float32)
    if COMPLEX:
        return re, tl.load(p + N * channels + offsets, mask, other=0.0).to(tl.float32)
    else:
        return re, re


@triton.jit
def store_tile(p, re, im, o_n, o_d, channels, N: tl.constexpr, COMPLEX: tl.constexpr):
    """Store planes (re, im) of a tile (state, channels)."""
    offsets = o_n[:, None] * channels + o_d[None, :]
    mask = (o_n < N)[:, None] & (o_d < channels)[None, :]
    tl.store(p + offsets, re, mask)
    if COMPLEX:
        tl.store(p + N * channels + offsets, im, mask)


@triton.jit
def load_rates(A, o_n, o_d, channels, N: tl.constexpr, COMPLEX: tl.constexpr):
    """Load A in the units of `decay`."""
    re, im = load_tile(A, o_n, o_d, channels, N, COMPLEX)
    return re * LOG2E, im


@triton.jit
def load_map(p, row, re, im, o_n, N: tl.constexpr, PER_STEP: tl.constexpr, COMPLEX: tl.constexpr):
    """Load B or C of one step, planes (re, im), each (state,); what is constant stays (re, im)."""
    if PER_STEP:
        planes: tl.constexpr = 2 if COMPLEX else 1
        at = p + row * (planes * N) + o_n
        re = tl.load(at) if o_n.shape[0] == N else tl.load(at, o_n < N, other=0.0)
        im = re
        if COMPLEX:
            im = tl.load(at + N) if o_n.shape[0] == N else tl.load(at + N, o_n < N, other=0.0)
    return re, im


@triton.jit
def prefetch(at):
    """Bring what is pointed at into the cache that is nearest, without waiting for it."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "prefetch.global.L1 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False,
            pack=1,
        )  # fmt: skip


@triton.jit
def prefetch_map(
    p, row, direction, first, count, S: tl.constexpr, N: tl.constexpr, COMPLEX: tl.constexpr
):  # fmt: skip
    """Prefetch B or C of the steps first ... first + S - 1.

    Every lane reads all of a step when it is due, too late to wait for memory; there are registers
    for one step ahead, not for more.
    """
    W: tl.constexpr = 2 * N if COMPLEX else N
    o = tl.arange(0, triton.next_power_of_2((S * W + 7) // 8)) * 8  # one of each 32 bytes
    step = tl.maximum(tl.minimum(first + o // W, count - 1), 0)
    prefetch(p + (row + direction * step) * W + o % W)


@triton.jit
def prefetch_tile(p, channels, N: tl.constexpr, BD: tl.constexpr, COMPLEX: tl.constexpr):
    """Prefetch what `load_tile` will load."""
    W: tl.constexpr = 2 * N if COMPLEX else N
    BW: tl.constexpr = triton.next_power_of_2(W)
    SECTORS: tl.constexpr = (BD + 7) // 8
    o = tl.arange(0, BW * SECTORS)
    o_d = tl.program_id(0) * BD + o % SECTORS * 8
    prefetch(p + tl.minimum(o // SECTORS, W - 1) * channels + tl.minimum(o_d, channels - 1))


@triton.jit
def first_map(
    p, row, o_n, o_d, channels, N: tl.constexpr, PER_STEP: tl.constexpr, COMPLEX: tl.constexpr
):
    """Load B or C of the first step, or once for all."""
    if PER_STEP:
        return load_map(p, row, 0.0, 0.0, o_n, N, PER_STEP, COMPLEX)
    else:
        return load_tile(p, o_n, o_d, channels, N, COMPLEX)


@triton.jit
def column(x, PER_STEP: tl.constexpr):
    """Let B or C of a step meet all channels."""
    return x[:, None] if PER_STEP else x


@triton.jit
def walk(start, length, REVERSE: tl.constexpr):
    """Return (origin, direction), int64: step i of a chunk is at time origin + direction i."""
    if REVERSE:
        return tl.maximum(length - 1 - start, 0), tl.full((), -1, tl.int64)
    else:
        return tl.maximum(tl.minimum(start, length - 1), 0), tl.full((), 1, tl.int64)


@triton.jit
def load_rows(p, stride, first, count, m_d, S: tl.constexpr):
    """Load the rows of the steps first ... first + S - 1 of a chunk, as they are, as a tuple.

    All at once, before any is needed: a thread that walks through time alone would wait for each.
    Step i lies at p + i stride; rows outside [0, count) are zero.
    """
    loaded = ()
    row = p + first * stride
    for j in tl.static_range(S):
        inside = m_d & (first + j >= 0) & (first + j < count)
        loaded = loaded + (tl.load(row + j * stride, inside, other=0.0),)
    return loaded


@triton.jit
def step_size(raw, bias, inside, SOFTPLUS: tl.constexpr):
    """Add the bias and apply softplus; outside the row delta is 0, which holds the state."""
    delta = raw.to(tl.float32) + bias
    if SOFTPLUS:
        delta = softplus(delta)
    return tl.where(inside, delta, 0.0)


@triton.jit
def load_bias(bias, o_d, channels):
    """Load delta_bias, zeros if there is none."""
    if bias is not None:
        return tl.load(bias + o_d, o_d < channels, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(o_d).to(tl.float32)
