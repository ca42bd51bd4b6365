"""h_t = a_t h_{t-1} + b_t for all t at once: linear work, logarithmic depth, no division."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("audiomamba::linear_recurrence", mutates_args=())
def linear_recurrence(a: Tensor, b: Tensor, initial_state: Tensor) -> Tensor:
    """Return h (batch, time, ...) of h_t = a_t h_{t-1} + b_t with h_{-1} = initial_state.

    Args:
        a: Decays, shape of b, real or complex; any size at most 1 is safe, however small the
            product over time.
        b: Inputs, (batch, time, ...), time >= 1.
        initial_state: (batch, ...).

    Source: Blelloch 1990, "Prefix sums and their applications", section 1.4, as odd-even recursion.
    """
    b = b.clone(memory_format=torch.contiguous_format)
    b[:, 0] += a[:, 0] * initial_state
    return odd_even_scan(a, b)


def odd_even_scan(a: Tensor, b: Tensor) -> Tensor:
    """Return h of h_t = a_t h_{t-1} + b_t, h_{-1} = 0, along dim 1; it may be b itself.

    Pairs are joined, the half-length problem is solved, and the steps in between follow from it. An
    `a` with one time step is constant in time; else a_0 is not read.
    """
    steps = b.shape[1]
    if steps == 1:
        return b
    even = steps - steps % 2
    a_even, a_odd, a_after = (
        (a, a, a) if a.shape[1] == 1 else (a[:, 0:even:2], a[:, 1:even:2], a[:, 2::2])
    )
    h_odd = odd_even_scan(a_odd * a_even, torch.addcmul(b[:, 1:even:2], a_odd, b[:, 0:even:2]))
    h = torch.empty_like(b)
    h[:, 1:even:2] = h_odd
    h[:, 0] = b[:, 0]
    h[:, 2::2] = torch.addcmul(b[:, 2::2], a_after, h_odd[:, : (steps - 1) // 2])
    return h


@linear_recurrence.register_fake
def _(a: Tensor, b: Tensor, initial_state: Tensor) -> Tensor:
    return b.new_empty(b.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    a, _, initial_state = inputs
    ctx.save_for_backward(a, initial_state, output)


def _backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of a scan is the same scan, backwards in time, with conjugated decays."""
    a, initial_state, h = ctx.saved_tensors
    # db_t = dh_t + conj(a_{t+1}) db_{t+1}; flipped, that is the forward scan. Its first decay meets
    # a zero state.
    a_next = torch.cat([a[:, 1:], a[:, :1]], dim=1).conj().resolve_conj()
    db = linear_recurrence(a_next.flip(1), dh.flip(1), torch.zeros_like(initial_state)).flip(1)
    h_before = torch.cat([initial_state[:, None], h[:, :-1]], dim=1)
    return db * h_before.conj(), db, db[:, 0] * a[:, 0].conj()


linear_recurrence.register_autograd(_backward, setup_context=_save)
