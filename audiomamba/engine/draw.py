"""Draw a token from logits: `audiomamba.sampling.sample`, which states the rules, compiled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiomamba_kernels.jit import jit, jit_sums
from audiomamba_kernels.vector_math import exp

Floats = NDArray[np.float32]

FAILED = -1
ZERO = np.float32(0)
INFINITY_BITS = 0x7F800000


@jit
def draw(
    logits: Floats,
    u: np.float32,
    temperature: np.float32,
    top_k: int,
    top_p: float,
    gap: Floats,
    weight: Floats,
    size: Floats,
) -> int:
    """Return a token, or FAILED if a logit is not finite.

    Args:
        logits: (levels,).
        u: Uniform in (0, 1).
        temperature: 0 takes the first of the largest logits.
        top_k: At least 1; `levels` keeps all.
        top_p: 1 keeps all.
        gap: Scratch (levels,), and so are weight and size.
        weight: Scratch.
        size: Scratch.
    """
    best = gaps(logits, gap)
    if not np.isfinite(total(gap)):
        return FAILED
    if temperature == 0:
        return best
    for i in range(len(logits)):
        weight[i] = exp(-(gap[i] / temperature))
    if top_k < len(logits):
        size[:] = 1
        keep(gap, size, float(top_k), weight)
    if top_p < 1:
        size[:] = weight
        keep(gap, size, top_p * total(weight), weight)
    return invert(weight, u * total(weight))


@jit
def gaps(logits: Floats, gap: Floats) -> int:
    """Fill in how far each logit is below the largest; return the first of the largest."""
    best = 0
    for i in range(len(logits)):
        if logits[i] > logits[best]:
            best = i
    largest = logits[best]
    for i in range(len(logits)):
        gap[i] = largest - logits[i]
    return best


@jit
def surprisal(gap: Floats, token: int, weight: Floats) -> float:
    """Return minus the log-likelihood of a token at temperature 1 and without cuts, in nats.

    Args:
        gap: As `gaps` gives them.
        token: A level.
        weight: Scratch (levels,).
    """
    for i in range(len(gap)):
        weight[i] = exp(-gap[i])
    return float(gap[token]) + math.log(total(weight))


@jit
def keep(gap: Floats, size: Floats, target: float, weight: Floats) -> None:
    """Keep the weights of the shortest prefix whose sizes reach `target`; set the others to 0.

    Tokens are in order of gap, and of token where gaps are equal. The largest gap kept is found by
    bisection on its bits, whose order as integers is that of the floats, as none is negative.
    """
    bits = gap.view(np.int32)
    low, high = -1, INFINITY_BITS
    while high - low > 1:
        middle = (low + high) // 2
        if size_up_to(np.int32(middle), bits, size) >= target:
            high = middle
        else:
            low = middle
    reached = size_up_to(np.int32(low), bits, size)
    for i in range(len(gap)):
        if bits[i] == high and reached < target:
            reached += size[i]
        elif bits[i] >= high:
            weight[i] = 0


@jit
def invert(weight: Floats, target: float) -> int:
    """Return the first token at which the running sum of weights exceeds `target`."""
    mass, last = 0.0, 0
    for i in range(len(weight)):
        if weight[i] > 0:
            last = i
        mass += weight[i]
        if mass > target:
            break
    return last


@jit_sums
def total(x: Floats) -> float:
    """Sum in float64."""
    mass = 0.0
    for i in range(len(x)):
        mass += x[i]
    return mass


@jit_sums
def size_up_to(largest: np.int32, bits: Any, size: Floats) -> float:
    """Sum the sizes of the tokens whose gap, as bits, is at most `largest`."""
    mass = 0.0
    for i in range(len(bits)):
        mass += size[i] if bits[i] <= largest else ZERO
    return mass
