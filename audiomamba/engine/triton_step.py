"""One sample through the network as functions of a Triton kernel; a program is a stream.

A vector lives in registers, padded with zeros to a power of two. `weights` and `state` point to the
flat arrays of `layout.py`, float32; `matrices` to a copy of `weights` that may be narrower, from
which matrix products read. Sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from audiomamba.engine import layout
from audiomamba_kernels.selective_scan.triton_math import LOG2E, decay, sigmoid, softplus

LTI = tl.constexpr(layout.LTI)
S4_MLP = tl.constexpr(layout.S4_MLP)


@triton.jit
def load_vector(p, SIZE: tl.constexpr):
    """Load (SIZE,)."""
    o = tl.arange(0, triton.next_power_of_2(SIZE))
    if triton.next_power_of_2(SIZE) == SIZE:
        return tl.load(p + o).to(tl.float32)
    else:
        return tl.load(p + o, o < SIZE, other=0.0).to(tl.float32)


@triton.jit
def store_vector(p, x, SIZE: tl.constexpr):
    """Store (SIZE,)."""
    o = tl.arange(0, triton.next_power_of_2(SIZE))
    tl.store(p + o, x, o < SIZE)


@triton.jit
def load_tile(p, rows, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr):
    """Load `rows` rows of COLUMNS numbers, STRIDE apart, as (HEIGHT, padded columns)."""
    WIDTH: tl.constexpr = triton.next_power_of_2(COLUMNS)
    k = tl.arange(0, HEIGHT)[:, None]
    o = tl.arange(0, WIDTH)[None, :]
    return tl.load(p + k * STRIDE + o, (k < rows) & (o < COLUMNS), other=0.0).to(tl.float32)


@triton.jit
def part(x, c, SIZE: tl.constexpr):
    """Return the c-th SIZE numbers of x: registers have no index that is known only now."""
    COUNT: tl.constexpr = x.shape[0] // SIZE
    if COUNT == 1:
        return x
    else:
        mine = tl.arange(0, COUNT)[:, None] == c
        return tl.sum(tl.where(mine, tl.reshape(x, (COUNT, SIZE)), 0.0), axis=0)


@triton.jit
def linear(x, p, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, T: tl.constexpr):
    """Return W x, with W at p stored as (inputs, outputs)."""
    WIDTH: tl.constexpr = triton.next_power_of_2(COLUMNS)
    HEIGHT: tl.constexpr = min(x.shape[0], max(1, T // WIDTH))
    y = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for c in range((ROWS + HEIGHT - 1) // HEIGHT):
        w = load_tile(p + c * (HEIGHT * STRIDE), ROWS - c * HEIGHT, STRIDE, HEIGHT, COLUMNS)
        y += w * part(x, c, HEIGHT)[:, None]
    return tl.sum(y, axis=0)


@triton.jit
def linear_pair(
    x, p, q, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, T: tl.constexpr
):
    """Return V x and W x, with V at p and W at q: one exchange between threads for both."""
    WIDTH: tl.constexpr = triton.next_power_of_2(COLUMNS)
    HEIGHT: tl.constexpr = min(x.shape[0], max(1, T // (2 * WIDTH)))
    y = tl.zeros((HEIGHT, WIDTH), tl.float32)
    z = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for c in range((ROWS + HEIGHT - 1) // HEIGHT):
        at = c * (HEIGHT * STRIDE)
        v = load_tile(p + at, ROWS - c * HEIGHT, STRIDE, HEIGHT, COLUMNS)
        w = load_tile(q + at, ROWS - c * HEIGHT, STRIDE, HEIGHT, COLUMNS)
        now = part(x, c, HEIGHT)[:, None]
        y += v * now
        z += w * now
    return tl.split(tl.sum(tl.join(y, z), axis=0))


@triton.jit
def linear_of_memory(x_ptr, p, ROWS: tl.constexpr, COLUMNS: tl.constexpr, T: tl.constexpr):
    """Return W x of a vector x in memory, which may be too long for registers."""
    WIDTH: tl.constexpr = triton.next_power_of_2(COLUMNS)
    HEIGHT: tl.constexpr = min(triton.next_power_of_2(ROWS), max(1, T // WIDTH))
    k = tl.arange(0, HEIGHT)
    y = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for c in range((ROWS + HEIGHT - 1) // HEIGHT):
        left = ROWS - c * HEIGHT
        w = load_tile(p + c * (HEIGHT * COLUMNS), left, COLUMNS, HEIGHT, COLUMNS)
        y += w * tl.load(x_ptr + c * HEIGHT + k, k < left, other=0.0)[:, None]
    return tl.sum(y, axis=0)


@triton.jit
def normalise(x, SIZE: tl.constexpr):
    """Return x / sqrt(mean(x^2) + epsilon); the weight is in the matrix that reads it."""
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + 1e-5)


@triton.jit
def silu(x):
    """x / (1 + e^-x)."""
    return x * sigmoid(x)


@triton.jit
def gelu(x):
    """x times the normal distribution's mass below x."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def convolve(x, weights, state, B: tl.constexpr):
    """Return silu(the short causal convolution of x); x enters the state."""
    D: tl.constexpr = B.d_inner
    PAST: tl.constexpr = B.d_conv - 1
    y = load_vector(weights + B.w_conv_bias, D)
    y += load_vector(weights + B.w_conv + PAST * D, D) * x
    rows = ()
    for k in tl.static_range(PAST):
        rows = rows + (load_vector(state + B.s_conv + k * D, D),)
        y += load_vector(weights + B.w_conv + k * D, D) * rows[k]
    # Another thread may still have to read what is overwritten here.
    tl.debug_barrier()
    for k in tl.static_range(1, PAST):
        store_vector(state + B.s_conv + (k - 1) * D, rows[k], D)
    if PAST > 0:
        store_vector(state + B.s_conv + (PAST - 1) * D, x, D)
    return silu(y)


@triton.jit
def advance(a_re, a_im, b_re, b_im, c_re, c_im, h_ptr, u, m, D: tl.constexpr, COMPLEX: tl.constexpr):
    """Compute h = a h + b u in memory; return c h, or Re(c h); tiles are (state, channels)."""
    h_re = tl.load(h_ptr, m, other=0.0)
    if COMPLEX:
        h_im = tl.load(h_ptr + D, m, other=0.0)
        re = a_re * h_re - a_im * h_im + b_re * u
        im = a_re * h_im + a_im * h_re + b_im * u
        tl.store(h_ptr, re, m)
        tl.store(h_ptr + D, im, m)
        return c_re * re - c_im * im
    else:
        re = a_re * h_re + b_re * u
        tl.store(h_ptr, re, m)
        return c_re * re


@triton.jit
def scan_time_invariant(u, weights, state, B: tl.constexpr, T: tl.constexpr):
    """Return the scan of u with the block's constant decay, gain and C."""
    D: tl.constexpr = B.d_inner
    ROWS: tl.constexpr = 2 if B.is_complex else 1
    WIDTH: tl.constexpr = u.shape[0]
    HEIGHT: tl.constexpr = min(triton.next_power_of_2(B.d_state), max(1, T // (4 * WIDTH)))
    y = tl.zeros((HEIGHT, WIDTH), tl.float32)
    o = tl.arange(0, WIDTH)[None, :]
    for c in range((B.d_state + HEIGHT - 1) // HEIGHT):
        n = c * HEIGHT + tl.arange(0, HEIGHT)[:, None]
        m = (n < B.d_state) & (o < D)
        p = weights + B.w_scan + n * (3 * ROWS * D) + o
        a_re = tl.load(p, m, other=0.0)
        b_re = tl.load(p + ROWS * D, m, other=0.0)
        c_re = tl.load(p + 2 * ROWS * D, m, other=0.0)
        a_im, b_im, c_im = a_re, b_re, c_re
        if ROWS == 2:
            a_im = tl.load(p + D, m, other=0.0)
            b_im = tl.load(p + 3 * D, m, other=0.0)
            c_im = tl.load(p + 5 * D, m, other=0.0)
        h = state + B.s_scan + n * (ROWS * D) + o
        y += advance(a_re, a_im, b_re, b_im, c_re, c_im, h, u[None, :], m, D, ROWS == 2)
    return tl.sum(y, axis=0)


@triton.jit
def scan_selective(u, weights, matrices, state, B: tl.constexpr, T: tl.constexpr):
    """Return the scan of u with the decay, gain and C that this u selects."""
    D: tl.constexpr = B.d_inner
    N: tl.constexpr = B.d_state
    ROWS: tl.constexpr = 2 if B.is_complex else 1
    WIDTH: tl.constexpr = u.shape[0]
    HEIGHT: tl.constexpr = min(triton.next_power_of_2(N), max(1, T // (4 * WIDTH)))
    STRIDE: tl.constexpr = B.dt_rank + 2 * ROWS * N
    w_x = matrices + B.w_x
    # (rank), then B and C, each all real and then all imaginary parts
    delta = linear(u, w_x, D, B.dt_rank, STRIDE, T)
    w_B = w_x + B.dt_rank
    B_re, C_re = linear_pair(u, w_B, w_B + ROWS * N, D, N, STRIDE, T)
    B_im, C_im = B_re, C_re
    if ROWS == 2:
        B_im, C_im = linear_pair(u, w_B + N, w_B + 3 * N, D, N, STRIDE, T)
    delta = linear(delta, matrices + B.w_dt, B.dt_rank, D, D, T)
    delta = softplus(delta + load_vector(weights + B.w_dt_bias, D))[None, :]
    y = tl.zeros((HEIGHT, WIDTH), tl.float32)
    o = tl.arange(0, WIDTH)[None, :]
    for c in range((N + HEIGHT - 1) // HEIGHT):
        n = c * HEIGHT + tl.arange(0, HEIGHT)[:, None]
        m = (n < N) & (o < D)
        p = weights + B.w_scan + n * (ROWS * D) + o
        A_re = tl.load(p, m, other=0.0)
        A_im = A_re
        if ROWS == 2:
            A_im = tl.load(p + D, m, other=0.0)
        a_re, a_im = decay(A_re * LOG2E, A_im, delta, ROWS == 2)
        b_re, c_re = part(B_re, c, HEIGHT)[:, None], part(C_re, c, HEIGHT)[:, None]
        b_im, c_im = b_re, c_re
        if ROWS == 2:
            b_im, c_im = part(B_im, c, HEIGHT)[:, None], part(C_im, c, HEIGHT)[:, None]
        h = state + B.s_scan + n * (ROWS * D) + o
        du = delta * u[None, :]
        y += advance(a_re, a_im, b_re, b_im, c_re, c_im, h, du, m, D, ROWS == 2)
    return tl.sum(y, axis=0)


@triton.jit
def mamba(x, weights, matrices, state, B: tl.constexpr, T: tl.constexpr):
    """Return x plus the Mamba mixer of norm(x)."""
    D: tl.constexpr = B.d_inner
    w_in = matrices + B.w_in
    normed = normalise(x, B.d_model)
    u, z = linear_pair(normed, w_in, w_in + D, B.d_model, D, 2 * D, T)
    u = convolve(u, weights, state, B)
    if B.kind == LTI:
        y = scan_time_invariant(u, weights, state, B, T)
    else:
        y = scan_selective(u, weights, matrices, state, B, T)
    y = (y + load_vector(weights + B.w_skip, D) * u) * silu(z)
    return x + linear(y, matrices + B.w_out, D, B.d_model, B.d_model, T)


@triton.jit
def s4(x, weights, matrices, state, B: tl.constexpr, T: tl.constexpr):
    """Return x plus the S4 mixer of norm(x), and then plus the MLP of its norm."""
    D: tl.constexpr = B.d_model
    normed = normalise(x, D)
    y = scan_time_invariant(normed, weights, state, B, T)
    y = gelu(y + load_vector(weights + B.w_skip, D) * normed)
    w_out = matrices + B.w_out
    value, gate = linear_pair(y, w_out, w_out + D, D, D, 2 * D, T)
    value += load_vector(weights + B.w_out_bias, D)
    gate += load_vector(weights + (B.w_out_bias + D), D)
    x += value * sigmoid(gate)

    hidden = linear(normalise(x, D), matrices + B.w_up, D, B.d_mlp, B.d_mlp, T)
    hidden = gelu(hidden + load_vector(weights + B.w_up_bias, B.d_mlp))
    y = linear(hidden, matrices + B.w_down, B.d_mlp, D, D, T)
    return x + y + load_vector(weights + B.w_down_bias, D)


@triton.jit
def run_tier(x, t, weights, matrices, state, P: tl.constexpr, T: tl.constexpr):
    """Pass x, the tier's frame t, through the tier; run those inside it where their frame is whole.

    They speak to this tier's next frame, so this one's result does not wait for them.
    """
    B: tl.constexpr = P.block
    D: tl.constexpr = B.d_model
    if P.pool > 0:
        BLOCKS: tl.constexpr = 2 * P.blocks
        at = (t % P.pool).to(tl.int32)
    else:
        BLOCKS: tl.constexpr = P.blocks
        at = 0
    for i in range(BLOCKS):
        back = i >= P.blocks
        w = i * P.w_step
        s = i * P.s_step
        if P.pool > 0:
            if i == P.blocks:
                store_vector(state + P.s_frame + at * D, x, D)
                x += load_vector(state + P.s_late + at * D, D)
            w = tl.where(back, P.w_back + (i - P.blocks) * P.w_step, w)
            s = tl.where(back, P.s_back + (i - P.blocks) * P.s_step, s)
        if B.kind == S4_MLP:
            x = s4(x, weights + w, matrices + w, state + s, B, T)
        else:
            x = mamba(x, weights + w, matrices + w, state + s, B, T)
    if P.pool > 0:
        if at == P.pool - 1:
            INNER: tl.constexpr = P.inner
            SIZE: tl.constexpr = P.pool * D
            WIDE: tl.constexpr = INNER.block.d_model
            tl.debug_barrier()  # the frame was written by other threads
            low = linear_of_memory(state + P.s_frame, matrices + P.w_pooling, SIZE, WIDE, T)
            low += load_vector(weights + P.w_pooling_bias, WIDE)
            low = run_tier(low, t // P.pool, weights, matrices, state, INNER, T)
            late = linear(low, matrices + P.w_unpooling, WIDE, SIZE, SIZE, T)
            late += load_vector(weights + P.w_unpooling_bias, SIZE)
            store_vector(state + P.s_late, late, SIZE)
    return x
