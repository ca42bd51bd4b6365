"""Memory as the Triton kernels want it: time contiguous, rows at multiples of 16 elements."""

from __future__ import annotations

import torch
from torch import Tensor

from audiomamba_kernels.rows import ALIGNMENT, empty_rows, row_strides


def as_rows(x: Tensor) -> Tensor:
    """Return x (batch, time, channels), or a copy of it, as memory that the kernels can read.

    Time is contiguous, rows begin at multiples of 16 elements, and may be read to the next one.
    """
    batch, channel = row_strides(x)
    starts = (x.shape[0] - 1) * batch + (x.shape[2] - 1) * channel
    end = x.storage_offset() + starts + -(-x.shape[1] // ALIGNMENT) * ALIGNMENT
    if (
        (x.stride(1) == 1 or x.shape[1] == 1)
        and batch % ALIGNMENT == 0
        and channel % ALIGNMENT == 0
        and x.data_ptr() % 16 == 0
        and end * x.element_size() <= x.untyped_storage().nbytes()
    ):
        return x
    return empty_rows(x).copy_(x)


def to_rows(x: Tensor) -> Tensor:
    """Return x (batch, time, channels), or a copy of it whose time is contiguous, as in `as_rows`.

    The copy is made of operations that torch.compile fuses with what x comes from.
    """
    steps = x.shape[1]
    if steps == 1 or x.stride(1) == 1:
        return x
    rows = x.mT
    if beyond := -steps % ALIGNMENT:
        rows = torch.nn.functional.pad(rows, (0, beyond))
    return rows.contiguous()[..., :steps].mT


def to_real(x: Tensor, padded: int) -> Tensor:
    """Return x (..., state) in float32 as (..., S): parts of complex numbers, then zeros."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj()).flatten(-2)
    return torch.nn.functional.pad(x.float(), (0, padded - x.shape[-1])).contiguous()


def from_real(x: Tensor, like: Tensor) -> Tensor:
    """Return x (..., S) as a tensor (..., state) of the kind and state of A, `like`."""
    if like.is_complex():
        x = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return x[..., : like.shape[-1]].contiguous()
