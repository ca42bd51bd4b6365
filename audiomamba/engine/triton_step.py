"""One sample through the network as functions of a Triton kernel; a program is a stream.

A vector lives in registers, padded with zeros as `triton_plan.padded` says. `weights` and `state`
point to float32 arrays as `layout.py` has them, `matrices` to one as `triton_plan.py` has them.
Sums are float32. The constants of every function are a block B or a tier P, the numbers of a matrix
V that a thread loads at once, and those T of a matrix that are in registers at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from audiomamba.engine import layout, triton_plan
from audiomamba_kernels.selective_scan.triton_math import LOG2E, decay, sigmoid, softplus

LTI = tl.constexpr(layout.LTI)
S4_MLP = tl.constexpr(layout.S4_MLP)
LEAST = tl.constexpr(triton_plan.LEAST)
THREADS = tl.constexpr(1024)  # at most, in a program


@triton.jit
def load_vector(p, SIZE: tl.constexpr):
    """Load (SIZE,)."""
    o = tl.arange(0, max(LEAST, triton.next_power_of_2(SIZE)))
    if o.shape[0] == SIZE:
        return tl.load(p + o)
    else:
        return tl.load(p + o, o < SIZE, other=0.0)


@triton.jit
def store_vector(p, x, SIZE: tl.constexpr):
    """Store (SIZE,)."""
    o = tl.arange(0, x.shape[0])
    tl.store(p + o, x, o < SIZE)


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
def settle(x):
    """Return x, computed once: what reads it in another layout shall not compute it there again.

    A product needs many inputs in each thread, and the compiler would have each thread compute
    them all to save an exchange. It does not carry a layout back through a sum over one row.
    """
    return tl.sum(x[None, :], axis=0)


@triton.jit
def load_matrix(p, c, HEIGHT: tl.constexpr, OUT: tl.constexpr, V: tl.constexpr):
    """Load the c-th HEIGHT * V inputs of a matrix as (OUT, HEIGHT, V).

    In this order of axes the compiler deals outputs to the threads before it deals inputs.
    """
    o = tl.arange(0, OUT)[:, None, None]
    k = tl.arange(0, HEIGHT)[None, :, None]
    v = tl.arange(0, V)[None, None, :]
    return tl.load(p + c * (HEIGHT * OUT * V) + k * (OUT * V) + o * V + v).to(tl.float32)


@triton.jit
def linear(x, p, OUT: tl.constexpr, V: tl.constexpr, T: tl.constexpr):
    """Return W x with W at p; OUT is padded."""
    HEIGHT: tl.constexpr = min(x.shape[0] // V, max(1, T // (OUT * V)))
    x = settle(x)
    y = tl.zeros((OUT, HEIGHT), tl.float32)
    for c in range(x.shape[0] // (HEIGHT * V)):
        w = load_matrix(p, c, HEIGHT, OUT, V)
        y += tl.sum(w * tl.reshape(part(x, c, HEIGHT * V), (1, HEIGHT, V)), axis=2)
    return tl.sum(y, axis=1)


@triton.jit
def linear_pair(x, p, OUT: tl.constexpr, V: tl.constexpr, T: tl.constexpr):
    """Return the two products with a matrix of two segments, each of OUT padded outputs."""
    return tl.split(tl.reshape(linear(x, p, 2 * OUT, V, T), (OUT, 2)))


@triton.jit
def linear_of_memory(
    x_ptr, p, IN: tl.constexpr, OUT: tl.constexpr, V: tl.constexpr, T: tl.constexpr
):
    """Return W x of a vector (IN,) in memory, which may be too long for registers."""
    ROWS: tl.constexpr = max(LEAST, triton.next_power_of_2(IN))
    HEIGHT: tl.constexpr = min(ROWS // V, max(1, T // (OUT * V)))
    k = tl.arange(0, HEIGHT * V)
    y = tl.zeros((OUT, HEIGHT), tl.float32)
    for c in range((IN + HEIGHT * V - 1) // (HEIGHT * V)):
        at = c * (HEIGHT * V) + k
        w = load_matrix(p, c, HEIGHT, OUT, V)
        x = settle(tl.load(x_ptr + at, at < IN, other=0.0))
        y += tl.sum(w * tl.reshape(x, (1, HEIGHT, V)), axis=2)
    return tl.sum(y, axis=1)


@triton.jit
def normalise(x, SIZE: tl.constexpr):
    """Return x / sqrt(mean(x^2) + epsilon); the weight is in the matrix that reads it."""
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + 1e-5)


@triton.jit
def silu(x):
    """Return x / (1 + e^-x)."""
    return x * sigmoid(x)


@triton.jit
def gelu(x):
    """Return x times the normal distribution's mass below x."""
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
def advance(a_re, a_im, b_re, b_im, c_re, c_im, h_ptr, u, m, D: tl.constexpr, ROWS: tl.constexpr):
    """Compute h = a h + b u in memory; return c h, or Re(c h); tiles are (state, channels)."""
    h_re = tl.load(h_ptr, m, other=0.0)
    h_im = tl.load(h_ptr + D, m, other=0.0) if ROWS == 2 else h_re
    if h_re.shape[0] * h_re.shape[1] < THREADS:
        tl.debug_barrier()  # several threads have read each number, and one of them writes it
    if ROWS == 2:
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
        y += advance(a_re, a_im, b_re, b_im, c_re, c_im, h, u[None, :], m, D, ROWS)
    return tl.sum(y, axis=0)


@triton.jit
def scan_selective(u, weights, matrices, state, B: tl.constexpr, V: tl.constexpr, T: tl.constexpr):
    """Return the scan of u with the decay, gain and C that this u selects."""
    D: tl.constexpr = B.d_inner
    N: tl.constexpr = B.d_state
    ROWS: tl.constexpr = 2 if B.is_complex else 1
    WIDTH: tl.constexpr = u.shape[0]
    HEIGHT: tl.constexpr = min(triton.next_power_of_2(N), max(1, T // (4 * WIDTH)))
    MAPS: tl.constexpr = max(LEAST, triton.next_power_of_2(N))
    RANK: tl.constexpr = max(LEAST, triton.next_power_of_2(B.dt_rank))
    delta = linear(linear(u, matrices + B.m_x, RANK, V, T), matrices + B.m_dt, WIDTH, V, T)
    delta = softplus(delta + load_vector(weights + B.w_dt_bias, D))[None, :]
    B_re, C_re = linear_pair(u, matrices + B.m_maps, MAPS, V, T)
    B_im, C_im = B_re, C_re
    if ROWS == 2:
        B_im, C_im = linear_pair(u, matrices + B.m_maps_im, MAPS, V, T)
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
        y += advance(a_re, a_im, b_re, b_im, c_re, c_im, h, du, m, D, ROWS)
    return tl.sum(y, axis=0)


@triton.jit
def mamba(x, weights, matrices, state, B: tl.constexpr, V: tl.constexpr, T: tl.constexpr):
    """Return x plus the Mamba mixer of norm(x)."""
    D: tl.constexpr = B.d_inner
    normed = normalise(x, B.d_model)
    u, z = linear_pair(normed, matrices + B.m_in, max(LEAST, triton.next_power_of_2(D)), V, T)
    u = convolve(u, weights, state, B)
    if B.kind == LTI:
        y = scan_time_invariant(u, weights, state, B, T)
    else:
        y = scan_selective(u, weights, matrices, state, B, V, T)
    y = (y + load_vector(weights + B.w_skip, D) * u) * silu(z)
    return x + linear(y, matrices + B.m_out, x.shape[0], V, T)


@triton.jit
def s4(x, weights, matrices, state, B: tl.constexpr, V: tl.constexpr, T: tl.constexpr):
    """Return x plus the S4 mixer of norm(x), and then plus the MLP of its norm."""
    D: tl.constexpr = B.d_model
    normed = normalise(x, D)
    y = scan_time_invariant(normed, weights, state, B, T)
    y = gelu(y + load_vector(weights + B.w_skip, D) * normed)
    value, gate = linear_pair(y, matrices + B.m_out, x.shape[0], V, T)
    value += load_vector(weights + B.w_out_bias, D)
    gate += load_vector(weights + (B.w_out_bias + D), D)
    x += value * sigmoid(gate)

    HIDDEN: tl.constexpr = max(LEAST, triton.next_power_of_2(B.d_mlp))
    hidden = linear(normalise(x, D), matrices + B.m_up, HIDDEN, V, T)
    hidden = gelu(hidden + load_vector(weights + B.w_up_bias, B.d_mlp))
    y = linear(hidden, matrices + B.m_down, x.shape[0], V, T)
    return x + y + load_vector(weights + B.w_down_bias, D)


@triton.jit
def run_tier(x, t, weights, matrices, state, P: tl.constexpr, V: tl.constexpr, T: tl.constexpr):
    """Pass x, the tier's frame t, through the tier; run those inside it where their frame is whole.

    They speak to this tier's next frame, so this one's result does not wait for them.
    """
    B: tl.constexpr = P.block
    J: tl.constexpr = P.joint
    D: tl.constexpr = B.d_model
    HAS_INNER: tl.constexpr = J.pool > 0
    BLOCKS: tl.constexpr = 2 * P.blocks if HAS_INNER else P.blocks
    at = 0
    if HAS_INNER:
        at = (t % J.pool).to(tl.int32)
    for i in range(BLOCKS):
        w = i * P.w_step
        m = i * P.m_step
        s = i * P.s_step
        if HAS_INNER:
            j = i - P.blocks
            if j == 0:
                store_vector(state + J.s_frame + at * D, x, D)
                x += load_vector(state + J.s_late + at * D, D)
            w = tl.where(j < 0, w, P.w_back + j * P.w_step)
            m = tl.where(j < 0, m, P.m_back + j * P.m_step)
            s = tl.where(j < 0, s, P.s_back + j * P.s_step)
        if B.kind == S4_MLP:
            x = s4(x, weights + w, matrices + m, state + s, B, V, T)
        else:
            x = mamba(x, weights + w, matrices + m, state + s, B, V, T)
    if HAS_INNER:
        run_inside(at, t, weights, matrices, state, P, V, T)
    return x


@triton.jit
def run_inside(at, t, weights, matrices, state, P: tl.constexpr, V: tl.constexpr, T: tl.constexpr):
    """Run the tiers inside this one if sample `at` made its frame whole."""
    J: tl.constexpr = P.joint
    INNER: tl.constexpr = P.inner
    SIZE: tl.constexpr = J.pool * J.d_model
    WIDE: tl.constexpr = INNER.block.d_model
    OUT: tl.constexpr = max(LEAST, triton.next_power_of_2(WIDE))
    LATE: tl.constexpr = max(LEAST, triton.next_power_of_2(SIZE))
    if at == J.pool - 1:
        tl.debug_barrier()  # other threads wrote the frame
        low = linear_of_memory(state + J.s_frame, matrices + J.m_pooling, SIZE, OUT, V, T)
        low += load_vector(weights + J.w_pooling_bias, WIDE)
        low = run_tier(low, t // J.pool, weights, matrices, state, INNER, V, T)
        late = linear(low, matrices + J.m_unpooling, LATE, V, T)
        late += load_vector(weights + J.w_unpooling_bias, SIZE)
        store_vector(state + J.s_late, late, SIZE)
