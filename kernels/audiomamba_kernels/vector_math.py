"""Elementary functions that loops over float32 run in vector registers: no branches, no calls.

LLVM turns a loop over `math.exp` into as many calls; over these, into 8 or 16 lanes. Each is good
to a few units in the last place of float32; the tests say how many. On float64 they are those of
the C library, exact and slow. Only compiled code can call them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from audiomamba_kernels.jit import Function, jit

F = np.float32

ZERO, HALF, ONE, TWO = F(0), F(0.5), F(1), F(2)
LOG2_E = F(1.44269504)
LN2 = math.log(2)
# ln 2 and pi / 2 in parts: the first have few bits, so that their products with small n are exact.
LN2_HIGH, LN2_LOW = F(0.693359375), F(-2.12194440e-4)
HALF_PI_1, HALF_PI_2, HALF_PI_3 = F(1.5703125), F(4.83751297e-4), F(7.54978942e-8)
TWO_OVER_PI = F(0.636619772)
EXP_MIN, EXP_MAX = F(-87.3), F(88.3)
EXP2_MIN, EXP2_MAX = F(-126), F(127.4)
E2, E3, E4 = F(5.0000001201e-1), F(1.6666665459e-1), F(4.1665795894e-2)
E5, E6, E7 = F(8.3334519073e-3), F(1.3981999507e-3), F(1.9875691500e-4)
S3, S5, S7 = F(-1.6666654611e-1), F(8.3321608736e-3), F(-1.9515295891e-4)
C4, C6, C8 = F(4.166664568298827e-2), F(-1.388731625493765e-3), F(2.443315711809948e-5)
P1, P2, P3, P4, P5, P6 = (F(LN2**k / math.factorial(k)) for k in range(1, 7))
L3, L5, L7, L9, L11, L13, L15 = (F(1 / n) for n in (3, 5, 7, 9, 11, 13, 15))
ERF_P = F(0.3275911)
ERF_1, ERF_2, ERF_3 = F(0.254829592), F(-0.284496736), F(1.421413741)
ERF_4, ERF_5 = F(-1.453152027), F(1.061405429)
ROOT_HALF = F(0.5**0.5)


def _bitcast(typingctx: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


float_of_bits: Any = intrinsic(_bitcast)  # int32 -> the float32 of the same bits


def elementary(wide: Callable[[float], Any]) -> Callable[[Function], Function]:
    """Compile the decorated function where its argument is float32, else `wide`."""

    def decorate(function: Function) -> Function:
        single, double = jit(function), jit(wide)
        choices = (lambda x: single(x)), (lambda x: double(x))
        overload(function)(lambda x: choices[x != types.float32])
        return function

    return decorate


@elementary(lambda x: math.exp(x))
def exp(x: F) -> F:
    """Return e^x; below -87.3 and above 88.3 its value there.

    Cephes' expf: 2^n e^r with |r| <= ln(2) / 2.
    """
    x = min(max(x, EXP_MIN), EXP_MAX)
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    y = ONE + r + r * r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * (E6 + r * E7)))))
    power = float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
    result: F = y * power
    return result


@elementary(lambda x: np.exp2(x))
def exp2(x: F) -> F:
    """Return 2^x; below -126 and above 127.4 its value there.

    2^n 2^r with |r| <= 1/2, by the series of e^(r ln 2).
    """
    x = min(max(x, EXP2_MIN), EXP2_MAX)
    n = np.rint(x)
    r = x - n
    y = ONE + r * (P1 + r * (P2 + r * (P3 + r * (P4 + r * (P5 + r * P6)))))
    power = float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
    result: F = y * power
    return result


@elementary(lambda x: (math.sin(x), math.cos(x)))
def sincos(x: F) -> tuple[F, F]:
    """Return sine and cosine, for |x| < 8000.

    Cephes' sinf and cosf: a whole number of quarter turns, and |r| <= pi / 4.
    """
    n = np.floor(x * TWO_OVER_PI + HALF)
    r = x - n * HALF_PI_1 - n * HALF_PI_2 - n * HALF_PI_3
    q = np.int32(n)
    r2 = r * r
    s = r + r * r2 * (S3 + r2 * (S5 + r2 * S7))
    c = ONE - HALF * r2 + r2 * r2 * (C4 + r2 * (C6 + r2 * C8))
    odd = (q & np.int32(1)) != 0
    sine = c if odd else s
    cosine = s if odd else c
    sine = -sine if (q & np.int32(2)) != 0 else sine
    cosine = -cosine if ((q + np.int32(1)) & np.int32(2)) != 0 else cosine
    return sine, cosine


@elementary(lambda x: x / (1 + math.exp(-x)))
def silu(x: F) -> F:
    """Return x / (1 + e^-x)."""
    result: F = x / (ONE + exp(-x))
    return result


@elementary(lambda x: 1 / (1 + math.exp(-x)))
def sigmoid(x: F) -> F:
    """Return 1 / (1 + e^-x)."""
    result: F = ONE / (ONE + exp(-x))
    return result


@elementary(lambda x: max(x, 0) + math.log1p(math.exp(-abs(x))))
def softplus(x: F) -> F:
    """Return ln(1 + e^x), as max(x, 0) + ln(1 + e^-|x|).

    The logarithm is 2 artanh(s), s = e / (2 + e) <= 1/3, by its series.
    """
    e = exp(-abs(x))
    s = e / (TWO + e)
    q = s * s
    series = ONE + q * (L3 + q * (L5 + q * (L7 + q * (L9 + q * (L11 + q * (L13 + q * L15))))))
    result: F = max(x, ZERO) + TWO * s * series
    return result


@elementary(lambda x: x * math.erfc(-x * math.sqrt(0.5)) / 2)
def gelu(x: F) -> F:
    """Return x times the normal distribution function of x.

    erf by Abramowitz & Stegun 7.1.26, off by at most 1.5e-7.
    """
    a = abs(x) * ROOT_HALF
    t = ONE / (ONE + ERF_P * a)
    tail = t * (ERF_1 + t * (ERF_2 + t * (ERF_3 + t * (ERF_4 + t * ERF_5)))) * exp(-a * a)
    result: F = HALF * x * (TWO - tail if x > ZERO else tail)
    return result
