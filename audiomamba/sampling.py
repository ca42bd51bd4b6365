"""From logits to a token: temperature, top-k, top-p and one uniform number a sample."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.engine import philox


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token, the first of equals. One
            below 1.2e-38, a subnormal number, may be taken as 0.
        top_k: Keep this many of the likeliest tokens; None, or more than there are, keeps all.
        top_p: Keep the fewest of the likeliest tokens that hold this share of the probability; None
            and 1 keep all.

    Raises:
        ValueError: If a value is out of range or no number.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_real(self.temperature, "temperature")
        if not 0 <= self.temperature <= float(np.finfo(np.float32).max):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more, and finite")
        if self.top_k is not None and check_whole(self.top_k, "top_k") < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or None")
        if self.top_p is not None:
            check_real(self.top_p, "top_p")
            if not 0 < self.top_p <= 1:
                raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Draw one token from each row of logits.

    1. gap = max(logits) - logits; weight = exp(-gap / temperature). All in float32.
    2. Tokens are ranked by gap, equal ones by token. top-k keeps the first k.
    3. top-p keeps the shortest prefix of these whose weights sum to at least top_p of theirs.
    4. In order of token, the first whose running sum of weights exceeds uniform times their sum.

    Sums are float64, so that two engines with the same logits disagree only where the weights
    differ by their last bit at the very edge: once in about 10^7 draws.

    Args:
        logits: (batch, levels), computed in float32.
        uniform: (batch,) in (0, 1), as `uniforms` gives them.
        sampling: Temperature, top-k and top-p.

    Returns:
        Tokens, int64 (batch,).

    Raises:
        ValueError: If a logit is not finite.
    """
    logits = logits.float()
    if not torch.isfinite(logits).all():
        raise ValueError("a logit is not finite; the weights are damaged or training diverged")
    gap = logits.max(dim=-1, keepdim=True).values - logits
    if np.float32(sampling.temperature) == 0:
        return (gap == 0).int().argmax(dim=-1)  # of equals, argmax of ints takes the first
    weight = torch.exp(-gap / sampling.temperature).double()
    order = gap.argsort(dim=-1, stable=True)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        weight = weight.scatter(-1, order[:, sampling.top_k :], 0.0)
    if sampling.top_p is not None and sampling.top_p < 1:
        ranked = weight.gather(-1, order)
        before = ranked.cumsum(dim=-1) - ranked
        ranked[before >= sampling.top_p * weight.sum(dim=-1, keepdim=True)] = 0
        weight = weight.scatter(-1, order, ranked)
    mass = weight.cumsum(dim=-1)
    target = uniform.double()[:, None] * mass[:, -1:]
    return (mass <= target).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def uniforms(seed: int, stream: int, start: int, count: int) -> NDArray[np.float32]:
    """Return the uniform numbers in (0, 1) for samples start, start + 1, ... of a stream.

    Each is a function of (seed, stream, sample) alone: Philox 4x32-10 with key (seed low, seed
    high) and counter (sample low, sample high, stream low, stream high), 32-bit halves, of whose
    first word w the number is (w >> 8 | 1) / 2^24.

    Raises:
        ValueError: If seed or stream is no unsigned 64-bit number.
    """
    out = np.empty(count, np.float32)
    philox.fill(check_seed(seed), check_seed(stream, "stream"), np.uint64(start), out)
    return out


def check_seed(value: int, name: str = "seed") -> np.uint64:
    """Return a seed as the number that the generator takes."""
    if not 0 <= check_whole(value, name) < 1 << 64:
        raise ValueError(f"{name} is {value}; it must be from 0 to 2^64 - 1")
    number: np.uint64 = np.uint64(value)
    return number


def check_whole(value: Any, name: str) -> int:
    """Return a whole number of any integer type as an int; a float is none, not even 10.0."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; it must be a whole number") from None


def check_real(value: Any, name: str) -> None:
    """Raise ValueError for what is no number of Python or NumPy."""
    if not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}; it must be a number")
