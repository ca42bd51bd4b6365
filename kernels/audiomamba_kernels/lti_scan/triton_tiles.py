"""Pieces of the Triton kernels of the time-invariant scan.

A tile is R chunks of Q steps of one channel, a row a chunk: (R, Q) lies in memory as it stands.
`valid` of its R Q steps come before the length. In most tiles all do, which is compiled on its own
(WHOLE); in others the last valid chunk is cut short: its decay is a lower power, and the product
that involves the end of time sees its steps moved to the end. Chunks in the padding do nothing, not
even decay. States are (R, S), a complex number being two neighbours, or pairs of (R, N); for real A
the second of a pair is the first, and unused.
"""

# mypy: disable-error-code="no-untyped-def, assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from audiomamba_kernels import backend

INTERPRETED = tl.constexpr(backend.INTERPRETED)
ALIGNMENT = tl.constexpr(16)  # elements: every row of memory starts and ends at a multiple


@triton.jit
def load_tile(x, start, length, R: tl.constexpr, Q: tl.constexpr, WHOLE: tl.constexpr):
    """Steps start to start + R Q of a row in time; zeros from the length on."""
    t = start + tl.arange(0, R)[:, None] * Q + tl.arange(0, Q)[None, :]
    if WHOLE:
        return tl.load(x + t)
    else:
        # The mask is equal for all that is loaded at once, the padding of memory included.
        value = tl.load(x + t, mask=t // ALIGNMENT < tl.cdiv(length, ALIGNMENT), other=0.0)
        return tl.where(t < length, value, 0.0)


@triton.jit
def store_tile(
    x, value, start, steps, length, R: tl.constexpr, Q: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """The inverse of `load_tile`; zeros from the length to the last step."""
    t = start + tl.arange(0, R)[:, None] * Q + tl.arange(0, Q)[None, :]
    value = value.to(x.dtype.element_ty)
    if WHOLE:
        tl.store(x + t, value)
    else:
        value = tl.where(t < length, value, 0.0)
        tl.store(x + t, value, mask=t // ALIGNMENT < tl.cdiv(steps, ALIGNMENT))


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), in four instructions."""
    if INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-x))
    else:
        return libdevice.fast_dividef(1.0, 1.0 + libdevice.fast_expf(-x))


@triton.jit
def count(n):
    """Return n as the end of a range: numpy refuses the interpreter an int made of an array."""
    if INTERPRETED:
        return n.handle.data.item()
    else:
        return n


@triton.jit
def keep(x):
    """x, computed once: the compiler would rather compute it in each layout that it is used in."""
    if INTERPRETED or x.dtype == tl.float32:
        return x
    else:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2
        )


@triton.jit
def to_end(x, valid, WHOLE: tl.constexpr):
    """Move the valid steps of the chunk that is cut short to the chunk's end."""
    if WHOLE:
        return x
    else:
        Q: tl.constexpr = x.shape[1]
        source = tl.arange(0, Q)[None, :] - _gap(valid, x.shape[0], Q)
        return tl.where(source >= 0, tl.gather(x, tl.maximum(source, 0), 1), 0.0).to(x.dtype)


@triton.jit
def from_end(x, valid, WHOLE: tl.constexpr):
    """The transpose of `to_end`."""
    if WHOLE:
        return x
    else:
        Q: tl.constexpr = x.shape[1]
        source = tl.arange(0, Q)[None, :] + _gap(valid, x.shape[0], Q)
        return tl.where(source < Q, tl.gather(x, tl.minimum(source, Q - 1), 1), 0.0).to(x.dtype)


@triton.jit
def _gap(valid, R: tl.constexpr, Q: tl.constexpr):
    """How many steps each chunk (R, Q) is moved."""
    rows = tl.arange(0, R)[:, None] + tl.zeros([R, Q], tl.int32)
    return tl.where(rows == valid // Q, Q - valid % Q, 0)


@triton.jit
def split(x, COMPLEX: tl.constexpr):
    """(R, S) -> the pair of (R, N)."""
    if COMPLEX:
        return tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))
    else:
        return x, x


@triton.jit
def join(re, im, COMPLEX: tl.constexpr):
    """The inverse of `split`."""
    if COMPLEX:
        return tl.reshape(tl.join(re, im), [re.shape[0], 2 * re.shape[1]])
    else:
        return re


@triton.jit
def multiply(a_re, a_im, b_re, b_im, COMPLEX: tl.constexpr):
    """A b."""
    if COMPLEX:
        return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re
    else:
        return a_re * b_re, a_re * b_re


@triton.jit
def multiply_conjugate(a_re, a_im, b_re, b_im, COMPLEX: tl.constexpr):
    """conj(a) b."""
    if COMPLEX:
        return a_re * b_re + a_im * b_im, a_re * b_im - a_im * b_re
    else:
        return a_re * b_re, a_re * b_re


@triton.jit
def load_pair(x, index, S: tl.constexpr, COMPLEX: tl.constexpr):
    """Rows `index`, (R, 1) or a number, of a table (..., S), as a pair of (R, N) or (1, N)."""
    if COMPLEX:
        place = x + index * S + 2 * tl.arange(0, S // 2)[None, :]
        return tl.load(place), tl.load(place + 1)
    else:
        re = tl.load(x + index * S + tl.arange(0, S)[None, :])
        return re, re


@triton.jit
def run(a_re, a_im, b_re, b_im, COMPLEX: tl.constexpr, BACKWARDS: tl.constexpr):
    """h_r = a_r h_(r-1) + b_r along the first axis."""
    if COMPLEX:
        _, _, b_re, b_im = tl.associative_scan(
            (a_re, a_im, b_re, b_im), 0, _join_complex, reverse=BACKWARDS
        )
        return b_re, b_im
    else:
        _, b_re = tl.associative_scan((a_re, b_re), 0, _join_real, reverse=BACKWARDS)
        return b_re, b_re


@triton.jit
def _join_real(a_first, b_first, a, b):
    return a_first * a, b_first * a + b


@triton.jit
def _join_complex(a_re_first, a_im_first, b_re_first, b_im_first, a_re, a_im, b_re, b_im):
    return (
        a_re_first * a_re - a_im_first * a_im,
        a_re_first * a_im + a_im_first * a_re,
        b_re_first * a_re - b_im_first * a_im + b_re,
        b_re_first * a_im + b_im_first * a_re + b_im,
    )


@triton.jit
def chunk_decays(
    rows, powers, valid, Q: tl.constexpr, S: tl.constexpr, COMPLEX: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """The decay over each of the chunks `rows` (R, 1), by its valid steps, a pair of (R, N)."""
    re, im = load_pair(powers, Q, S, COMPLEX)
    if WHOLE:
        nothing = tl.zeros([rows.shape[0], 1], tl.float32)
        return re + nothing, im + nothing
    else:
        steps = valid - rows * Q
        cut_re, cut_im = load_pair(powers, valid % Q, S, COMPLEX)
        re = tl.where(steps >= Q, re, tl.where(steps > 0, cut_re, 1.0))
        im = tl.where(steps >= Q, im, tl.where(steps > 0, cut_im, 0.0))
        return re, im


@triton.jit
def chunk_states(
    ends_re, ends_im, entering, powers, valid, Q: tl.constexpr, COMPLEX: tl.constexpr,
    BACKWARDS: tl.constexpr, ADJOINT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The state before each chunk of a tile, (R, S).

    ends, a pair of (R, N), is what each chunk adds to the state, entering (1, S) the state before
    the tile.
    """
    R: tl.constexpr = ends_re.shape[0]
    S: tl.constexpr = entering.shape[1]
    rows = tl.arange(0, R)[:, None]
    first: tl.constexpr = R - 1 if BACKWARDS else 0
    a_re, a_im = chunk_decays(rows, powers, valid, Q, S, COMPLEX, WHOLE)
    a_im = -a_im if ADJOINT else a_im
    b_re, b_im = split(entering, COMPLEX)
    b_re, b_im = multiply(a_re, a_im, b_re, b_im, COMPLEX)
    b_re = tl.where(rows == first, b_re + ends_re, ends_re)
    b_im = tl.where(rows == first, b_im + ends_im, ends_im)
    b_re, b_im = run(a_re, a_im, b_re, b_im, COMPLEX, BACKWARDS)
    previous = tl.minimum(rows + 1, R - 1) if BACKWARDS else tl.maximum(rows - 1, 0)
    previous += tl.zeros([R, S], tl.int32)
    return tl.where(rows == first, entering, tl.gather(join(b_re, b_im, COMPLEX), previous, 0))
