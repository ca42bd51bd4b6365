"""Counter-based random numbers: that of sample t of stream i under a seed is a formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audiomamba_kernels.jit import fingerprint, jit, jit_cached

U = np.uint64

MASK = U(0xFFFFFFFF)
HALF = U(32)
MULTIPLY_0, MULTIPLY_1 = U(0xD2511F53), U(0xCD9E8D57)
WEYL_0, WEYL_1 = U(0x9E3779B9), U(0xBB67AE85)
DROPPED, ODD = U(8), U(1)
STEP = np.float32(2**-24)


@jit
def philox4x32(c0: U, c1: U, c2: U, c3: U, k0: U, k1: U) -> tuple[U, U, U, U]:
    """Encrypt a counter of four 32-bit words under a key of two, in ten rounds: Philox 4x32-10.

    Every word is a uint64 below 2^32.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    for _ in range(10):
        p0, p1 = MULTIPLY_0 * c0, MULTIPLY_1 * c2
        c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1 & MASK, (p0 >> HALF) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL_0) & MASK, (k1 + WEYL_1) & MASK
    return c0, c1, c2, c3


@jit
def uniform(seed: U, stream: U, t: U) -> np.float32:
    """Return the uniform number in (0, 1) for sample t of a stream.

    Key (seed low, seed high), counter (t low, t high, stream low, stream high), each a 32-bit half.
    The number is (w >> 8 | 1) / 2^24, w the first word of four: the middle of one of 2^23 equal
    intervals, which float32 holds exactly, and never 0, which would draw the least likely token.
    """
    words = philox4x32(
        t & MASK, t >> HALF, stream & MASK, stream >> HALF, seed & MASK, seed >> HALF
    )
    number: np.float32 = np.float32((words[0] >> DROPPED) | ODD) * STEP
    return number


def _compile(version: int) -> Callable[[U, U, U, NDArray[np.float32]], None]:
    @jit_cached
    def fill(seed: U, stream: U, start: U, out: NDArray[np.float32]) -> None:
        """Write the numbers for samples start, start + 1, ... into out."""
        _ = version
        for i in range(len(out)):
            out[i] = uniform(seed, stream, start + U(i))

    return fill


fill = _compile(fingerprint(Path(__file__).parent))
