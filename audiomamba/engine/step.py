"""One sample through the network, and the loop over samples: `UNet.step` and its layers, compiled.

Every function takes the flat weights or state and a place in it, and works on float32 vectors:
x (d_model,) the residual stream, u and y (d_inner,) before and after a scan, h a state.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audiomamba.engine.draw import FAILED, draw, gaps, surprisal
from audiomamba.engine.layout import LTI, S4_MLP, Plan, aligned
from audiomamba.engine.philox import uniform
from audiomamba_kernels.jit import fingerprint, jit, jit_cached, jit_sums
from audiomamba_kernels.vector_math import exp, gelu, sigmoid, silu, sincos, softplus

Floats = NDArray[np.float32]

EPSILON = np.float32(1e-5)
ONE = np.float32(1)


class Scratch(NamedTuple):
    """Buffers of one stream, overwritten by every step; each at least as long as any vector."""

    x: Floats
    normed: Floats
    wide: Floats
    u: Floats
    y: Floats
    selected: Floats
    delta: Floats
    scan: Floats  # (6 * width,)
    gap: Floats  # (levels,)
    weight: Floats  # (levels,)
    size: Floats  # (levels,)


def scratch_for(width: int, levels: int) -> Scratch:
    """Allocate buffers for vectors of at most `width`."""
    x, normed, wide, u, y, selected, delta = (aligned(width) for _ in range(7))
    scan = aligned(6 * width)
    gap, weight, size = (aligned(levels) for _ in range(3))
    return Scratch(x, normed, wide, u, y, selected, delta, scan, gap, weight, size)


@jit
def add_linear(weights: Floats, at: int, x: Floats, y: Floats) -> None:
    """Compute y += W x, with W stored as (inputs, outputs)."""
    n = len(x)
    w = weights[at : at + n * len(y)].reshape(n, len(y))
    whole = n - n % 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        for o in range(len(y)):
            y[o] += x0 * w[i, o] + x1 * w[i + 1, o] + x2 * w[i + 2, o] + x3 * w[i + 3, o]
    for i in range(whole, n):
        for o in range(len(y)):
            y[o] += x[i] * w[i, o]


@jit
def linear(weights: Floats, at: int, x: Floats, y: Floats) -> None:
    """Compute y = W x."""
    y[:] = 0
    add_linear(weights, at, x, y)


@jit
def affine(weights: Floats, at: int, bias: int, x: Floats, y: Floats) -> None:
    """Compute y = W x + b."""
    y[:] = weights[bias : bias + len(y)]
    add_linear(weights, at, x, y)


@jit_sums
def normalise(x: Floats, y: Floats) -> None:
    """Compute y = x / sqrt(mean(x^2) + epsilon); the weight is in the matrix that reads y."""
    square = np.float32(0)
    for i in range(len(x)):
        square += x[i] * x[i]
    scale = ONE / np.sqrt(square / np.float32(len(x)) + EPSILON)
    for i in range(len(x)):
        y[i] = x[i] * scale


@jit
def convolve(block: Any, weights: Floats, state: Floats, x: Floats, y: Floats) -> None:
    """Compute y = silu(the short causal convolution of x); x enters the state."""
    n, width = len(x), block.d_conv
    w = weights[block.w_conv : block.w_conv + width * n].reshape(width, n)
    past = state[block.s_conv : block.s_conv + (width - 1) * n].reshape(width - 1, n)
    bias = weights[block.w_conv_bias : block.w_conv_bias + n]
    for i in range(n):
        y[i] = bias[i] + w[width - 1, i] * x[i]
    for k in range(width - 1):
        for i in range(n):
            y[i] += w[k, i] * past[k, i]
    for i in range(n):
        y[i] = silu(y[i])
    for k in range(width - 2):
        past[k] = past[k + 1]
    if width > 1:
        past[width - 2] = x


@jit
def advance_real(p: Floats, h: Floats, u: Floats, y: Floats) -> None:
    """Compute h = a h + b u; y += c h; for one state of all channels; a, b, c are rows of p."""
    for i in range(len(u)):
        h[0, i] = p[0, i] * h[0, i] + p[1, i] * u[i]
    for i in range(len(u)):
        y[i] += p[2, i] * h[0, i]


@jit
def advance_complex(p: Floats, h: Floats, u: Floats, y: Floats) -> None:
    """Compute h = a h + b u; y += Re(c h); for one state of all channels.

    Rows of real and of imaginary parts in turn: p (6, channels) holds a, b, c, and h is (2,
    channels). Two loops, because LLVM gives up on one that touches so many arrays.
    """
    for i in range(len(u)):
        real = p[0, i] * h[0, i] - p[1, i] * h[1, i] + p[2, i] * u[i]
        imag = p[0, i] * h[1, i] + p[1, i] * h[0, i] + p[3, i] * u[i]
        h[0, i] = real
        h[1, i] = imag
    for i in range(len(u)):
        y[i] += p[4, i] * h[0, i] - p[5, i] * h[1, i]


@jit
def scan_time_invariant(block: Any, weights: Floats, state: Floats, u: Floats, y: Floats) -> None:
    """Add to y the scan of u with the block's constant decay, gain and C."""
    n, d = block.d_state, block.d_inner
    if block.is_complex:
        p = weights[block.w_scan : block.w_scan + n * 6 * d].reshape(n, 6, d)
        h = state[block.s_scan : block.s_scan + n * 2 * d].reshape(n, 2, d)
        for k in range(n):
            advance_complex(p[k], h[k], u, y)
    else:
        p = weights[block.w_scan : block.w_scan + n * 3 * d].reshape(n, 3, d)
        h = state[block.s_scan : block.s_scan + n * d].reshape(n, 1, d)
        for k in range(n):
            advance_real(p[k], h[k], u, y)


@jit
def scan_selective(
    block: Any, weights: Floats, state: Floats, scratch: Scratch, u: Floats, y: Floats
) -> None:
    """Add to y the scan of u with the decay, gain and C that this u selects."""
    n, d, rank = block.d_state, block.d_inner, block.dt_rank
    parts = 2 if block.is_complex else 1
    selected = scratch.selected[: rank + 2 * parts * n]
    linear(weights, block.w_x, u, selected)
    delta = scratch.delta[:d]
    affine(weights, block.w_dt, block.w_dt_bias, selected[:rank], delta)
    for i in range(d):
        delta[i] = softplus(delta[i])
    B = selected[rank : rank + parts * n].reshape(parts, n)
    C = selected[rank + parts * n :].reshape(parts, n)
    A = weights[block.w_scan : block.w_scan + n * parts * d].reshape(n, parts, d)
    h = state[block.s_scan : block.s_scan + n * parts * d].reshape(n, parts, d)
    p = scratch.scan[: 6 * d].reshape(6, d)
    for k in range(n):
        if block.is_complex:
            select_complex(delta, A[k], B[0, k], B[1, k], C[0, k], C[1, k], p)
            advance_complex(p, h[k], u, y)
        else:
            select_real(delta, A[k], B[0, k], C[0, k], p)
            advance_real(p, h[k], u, y)


@jit
def select_real(delta: Floats, A: Floats, B: np.float32, C: np.float32, p: Floats) -> None:
    """Fill p with decay, gain and C, as `advance_real` reads them."""
    for i in range(len(delta)):
        p[0, i] = exp(delta[i] * A[0, i])
    for i in range(len(delta)):
        p[1, i] = delta[i] * B
        p[2, i] = C


@jit
def select_complex(
    delta: Floats,
    A: Floats,
    B_real: np.float32,
    B_imag: np.float32,
    C_real: np.float32,
    C_imag: np.float32,
    p: Floats,
) -> None:
    """Fill p with decay, gain and C, as `advance_complex` reads them."""
    for i in range(len(delta)):
        size = exp(delta[i] * A[0, i])
        sine, cosine = sincos(delta[i] * A[1, i])
        p[0, i] = size * cosine
        p[1, i] = size * sine
    for i in range(len(delta)):
        p[2, i] = delta[i] * B_real
        p[3, i] = delta[i] * B_imag
        p[4, i] = C_real
        p[5, i] = C_imag


@jit
def mamba(block: Any, weights: Floats, state: Floats, scratch: Scratch, x: Floats) -> None:
    """Add to x the Mamba mixer of norm(x)."""
    d = block.d_inner
    normed, xz = scratch.normed[: len(x)], scratch.wide[: 2 * d]
    u, y = scratch.u[:d], scratch.y[:d]
    normalise(x, normed)
    linear(weights, block.w_in, normed, xz)
    convolve(block, weights, state, xz[:d], u)
    skip = weights[block.w_skip : block.w_skip + d]
    for i in range(d):
        y[i] = skip[i] * u[i]
    if block.kind == LTI:
        scan_time_invariant(block, weights, state, u, y)
    else:
        scan_selective(block, weights, state, scratch, u, y)
    z = xz[d:]
    for i in range(d):
        y[i] *= silu(z[i])
    add_linear(weights, block.w_out, y, x)


@jit
def s4(block: Any, weights: Floats, state: Floats, scratch: Scratch, x: Floats) -> None:
    """Add to x the S4 mixer of norm(x), then the MLP of norm(x)."""
    n = len(x)
    normed, y, wide = scratch.normed[:n], scratch.y[:n], scratch.wide[: 2 * n]
    normalise(x, normed)
    skip = weights[block.w_skip : block.w_skip + n]
    for i in range(n):
        y[i] = skip[i] * normed[i]
    scan_time_invariant(block, weights, state, normed, y)
    for i in range(n):
        y[i] = gelu(y[i])
    affine(weights, block.w_out, block.w_out_bias, y, wide)
    for i in range(n):
        x[i] += wide[i] * sigmoid(wide[n + i])

    hidden = scratch.wide[: block.d_mlp]
    normalise(x, normed)
    affine(weights, block.w_up, block.w_up_bias, normed, hidden)
    for i in range(len(hidden)):
        hidden[i] = gelu(hidden[i])
    bias = weights[block.w_down_bias : block.w_down_bias + n]
    for i in range(n):
        x[i] += bias[i]
    add_linear(weights, block.w_down, hidden, x)


@jit
def run_blocks(
    plan: Plan, first: int, end: int, state: Floats, scratch: Scratch, x: Floats
) -> None:
    """Pass x through blocks in place."""
    for i in range(first, end):
        block = plan.blocks[i]
        if block.kind == S4_MLP:
            s4(block, plan.weights, state, scratch, x)
        else:
            mamba(block, plan.weights, state, scratch, x)


@jit
def step(plan: Plan, token: int, t: int, state: Floats, scratch: Scratch, logits: Floats) -> None:
    """Compute the logits of token t from token t - 1.

    A tier runs when the frame of the tier outside it is whole. It speaks to that tier's next frame,
    so one walk from the outermost tier inwards does everything.
    """
    weights = plan.weights
    x = scratch.x[: plan.embedding.shape[1]]
    x[:] = plan.embedding[token]
    for i in range(len(plan.tiers)):
        tier = plan.tiers[i]
        x = scratch.x[: tier.d_model]
        run_blocks(plan, tier.down_first, tier.down_end, state, scratch, x)
        at = 0
        if tier.pool > 0:
            at = t % tier.pool
            t //= tier.pool
            frame = state[tier.s_frame : tier.s_frame + tier.pool * len(x)]
            here = at * len(x)
            frame[here : here + len(x)] = x
            late = state[tier.s_late + here : tier.s_late + here + len(x)]
            for k in range(len(x)):
                x[k] += late[k]
            run_blocks(plan, tier.up_first, tier.up_end, state, scratch, x)
        if i == 0:
            normed = scratch.normed[: len(x)]
            normalise(x, normed)
            logits[:] = plan.head_bias
            add_linear(plan.head, 0, normed, logits)
        else:
            outer = plan.tiers[i - 1]
            late = state[outer.s_late : outer.s_late + outer.pool * outer.d_model]
            affine(weights, outer.w_unpooling, outer.w_unpooling_bias, x, late)
        if tier.pool == 0 or at < tier.pool - 1:
            break
        pooled = scratch.x[: plan.tiers[i + 1].d_model]
        affine(weights, tier.w_pooling, tier.w_pooling_bias, frame, pooled)


def _compile(version: int) -> Callable[..., int]:
    @jit_cached
    def run(
        plan: Plan,
        state: Floats,
        scratch: Scratch,
        logits: Floats,
        nats: NDArray[np.float64],
        tokens: NDArray[np.int64],
        previous: int,
        start: int,
        temperature: np.float32,
        top_k: int,
        top_p: float,
        seed: np.uint64,
        stream: np.uint64,
    ) -> int:
        """Take a step for each of `tokens`, the first at time `start` after token `previous`.

        Negative tokens are drawn and filled in, others are read. To nats (1,) minus the
        log-likelihood of each is added, at temperature 1 and without cuts.

        Returns:
            Steps taken: fewer than tokens if a logit was not finite.
        """
        _ = version
        for i in range(len(tokens)):
            step(plan, previous, start + i, state, scratch, logits)
            if tokens[i] < 0:
                u = uniform(seed, stream, np.uint64(start + i))
                buffers = (scratch.gap, scratch.weight, scratch.size)
                token = draw(logits, u, temperature, top_k, top_p, *buffers)
                if token == FAILED:
                    return i
                tokens[i] = token
            else:
                gaps(logits, scratch.gap)
            previous = tokens[i]
            nats[0] += surprisal(scratch.gap, previous, scratch.weight)
        return len(tokens)

    function: Callable[..., int] = run
    return function


run = _compile(fingerprint(Path(__file__).parent))
