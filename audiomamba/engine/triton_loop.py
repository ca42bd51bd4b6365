"""The kernel that makes many samples a launch: one program a stream, nothing asked of the host."""

from __future__ import annotations

import triton
import triton.language as tl

from audiomamba.engine.triton_draw import FAILED, draw, gaps, nats, uniform
from audiomamba.engine.triton_step import (
    LEAST,
    linear,
    load_vector,
    normalise,
    run_tier,
    store_vector,
)


@triton.jit(do_not_specialize=["samples"])
def run_kernel(
    tokens_ptr,
    stream_ptr,
    nats_ptr,
    logits_ptr,
    state_ptr,
    weights_ptr,
    matrices_ptr,
    options_ptr,
    samples,
    NET: tl.constexpr,
    TILE: tl.constexpr,
):
    """Take `samples` steps of each stream.

    Args:
        tokens_ptr: int32 (streams, samples). Negative ones are drawn and filled in, and stay FAILED
            from the first for which a logit is not finite; others are read.
        stream_ptr: int64 (streams, 4): position, previous token, seed, number; the first two are
            moved on. A stream that failed has FAILED as its previous token for ever.
        nats_ptr: float64 (streams,), to which minus the log-likelihood of the tokens is added.
        logits_ptr: float32 (streams, levels), of the last token.
        state_ptr: float32 (streams, state).
        weights_ptr: float32.
        matrices_ptr: float32 or narrower.
        options_ptr: float64 (3,): temperature, top-k, top-p.
        samples: At least 1.
        NET: A `NetPlan`.
        TILE: Numbers of a matrix that are in registers at once.
    """
    OUTER: tl.constexpr = NET.outer
    D: tl.constexpr = OUTER.block.d_model
    V: tl.constexpr = NET.vector
    LEVELS: tl.constexpr = NET.levels
    WIDTH: tl.constexpr = max(LEAST, triton.next_power_of_2(LEVELS))
    row = tl.program_id(0).to(tl.int64)
    tokens_ptr += row * samples
    stream_ptr += row * 4
    state_ptr += row * NET.state_size
    position = tl.load(stream_ptr)
    previous = tl.load(stream_ptr + 1).to(tl.int32)
    seed = tl.load(stream_ptr + 2)
    number = tl.load(stream_ptr + 3)
    temperature = tl.load(options_ptr).to(tl.float32)
    top_k = tl.load(options_ptr + 1)
    top_p = tl.load(options_ptr + 2)
    spent = tl.load(nats_ptr + row)
    for i in range(samples):
        tl.debug_barrier()  # what threads wrote of the state others read
        t = position + i
        x = load_vector(weights_ptr + NET.w_embedding + tl.maximum(previous, 0) * D, D)
        x = run_tier(x, t, weights_ptr, matrices_ptr, state_ptr, OUTER, V, TILE)
        logits = linear(normalise(x, D), matrices_ptr + NET.m_head, WIDTH, V, TILE)
        logits += load_vector(weights_ptr + NET.w_head_bias, LEVELS)
        gap, finite = gaps(logits, LEVELS)
        token = tl.load(tokens_ptr + i)
        if token < 0:
            token = FAILED
            if finite & (previous >= 0):
                u = uniform(seed, number, t)
                token = draw(gap, u, temperature, top_k, top_p, LEVELS)
            tl.debug_barrier()  # all threads have read what one of them writes
            tl.store(tokens_ptr + i, token)
        spent += nats(gap, token, LEVELS)
        previous = tl.where(previous < 0, FAILED, token)
        if i == samples - 1:
            store_vector(logits_ptr + row * LEVELS, logits, LEVELS)
    tl.store(stream_ptr, position + samples)
    tl.store(stream_ptr + 1, previous.to(tl.int64))
    tl.store(nats_ptr + row, spent)
