"""Draw a token from logits inside a Triton kernel, by the rules of `audiomamba.sampling.sample`."""

from __future__ import annotations

import triton
import triton.language as tl

from audiomamba_kernels.selective_scan.triton_math import LOG2E

FAILED = tl.constexpr(-1)


@triton.jit
def uniform(seed, stream, t):
    """Return the number of `audiomamba.engine.philox.uniform`; arguments are int64, bit by bit."""
    word, _, _, _ = tl.philox(
        seed,
        (t & 0xFFFFFFFF).to(tl.uint32),
        ((t >> 32) & 0xFFFFFFFF).to(tl.uint32),
        (stream & 0xFFFFFFFF).to(tl.uint32),
        ((stream >> 32) & 0xFFFFFFFF).to(tl.uint32),
    )
    return ((word >> 8) | 1).to(tl.float32) * (1.0 / 16777216)


@triton.jit
def exp_negative(x):
    """e^-x for x >= 0 to float32's accuracy; x log2(e) alone would lose log2(x) bits."""
    x = tl.minimum(x, 200.0)
    power = (-x * LOG2E + 12582912.0) - 12582912.0  # rounded by the sum with 1.5 * 2^23
    r = (-x - power * 0.693359375) + power * 0.00021219444005469057
    return tl.exp2(power) * tl.exp2(r * LOG2E)


@triton.jit
def gaps(logits, LEVELS: tl.constexpr):
    """Return how far each logit lies below the largest, and whether all are finite."""
    inside = tl.arange(0, logits.shape[0]) < LEVELS
    number = logits == logits  # what is none, a maximum may pass over
    largest = tl.max(tl.where(inside & number, logits, float("-inf")), axis=0)
    gap = tl.where(inside, largest - logits, 0.0)
    return gap, tl.sum((gap < float("inf")).to(tl.int32), axis=0) == logits.shape[0]


@triton.jit
def nats(gap, token, LEVELS: tl.constexpr):
    """Return minus the log-likelihood of a token, before temperature and cuts, float32."""
    o = tl.arange(0, gap.shape[0])
    mass = tl.sum(tl.where(o < LEVELS, exp_negative(gap), 0.0), axis=0)
    return tl.log(mass) + tl.sum(tl.where(o == token, gap, 0.0), axis=0)


@triton.jit
def draw(gap, u, temperature, top_k, top_p, LEVELS: tl.constexpr):
    """Return a token.

    Args:
        gap: As `gaps` gives it.
        u: Uniform in (0, 1).
        temperature: float32; 0 takes the first of the largest logits.
        top_k: At least 1; LEVELS keeps all.
        top_p: float64; 1 keeps all.
        LEVELS: Count of levels.
    """
    o = tl.arange(0, gap.shape[0])
    inside = o < LEVELS
    token = tl.min(tl.where(inside & (gap == 0.0), o, LEVELS), axis=0)
    if temperature > 0.0:
        scaled = tl.div_rn(gap, tl.zeros_like(gap) + temperature)
        weight = tl.where(inside, exp_negative(scaled), 0.0).to(tl.float64)
        if top_k < LEVELS:
            weight = keep(gap, inside.to(tl.float64), top_k.to(tl.float64), weight)
        if top_p < 1.0:
            weight = keep(gap, weight, top_p * tl.sum(weight, axis=0), weight)
        mass = tl.cumsum(weight, axis=0)
        target = u.to(tl.float64) * tl.max(mass, axis=0)
        token = tl.minimum(tl.sum((mass <= target).to(tl.int32), axis=0), LEVELS - 1)
    return token


@triton.jit
def keep(gap, size, target, weight):
    """Keep the weights of the shortest prefix whose sizes reach `target`; set the others to 0.

    Tokens are in order of gap, and of token where gaps are equal. The largest gap kept is found
    digit by digit of its bits, whose order as integers is that of the floats, as none is negative.
    """
    BITS: tl.constexpr = 4 if gap.shape[0] <= 512 else 2
    bits = gap.to(tl.int32, bitcast=True)
    digits = tl.arange(0, 2**BITS)
    found = 0
    for step in range(32 // BITS):
        found = found * 2**BITS
        within = (bits >> (32 - BITS - step * BITS))[None, :] <= found + digits[:, None]
        reached = tl.sum(tl.where(within, size[None, :], 0.0), axis=1)
        below = tl.sum((reached < target).to(tl.int32), axis=0)
        found += tl.minimum(below, 2**BITS - 1)
    at_edge = tl.where(bits == found, size, 0.0)
    before = tl.sum(tl.where(bits < found, size, 0.0), axis=0)
    before += tl.cumsum(at_edge, axis=0) - at_edge
    return tl.where((bits < found) | ((bits == found) & (before < target)), weight, 0.0)
