"""Batches of sequences of different lengths: padded at the end of each row, or packed in one row.

A packed batch (1, total, ...) holds sequence i at cu_seqlens[i] <= t < cu_seqlens[i + 1]; the
operations unpack it into a padded batch (sequences, longest, ...) plus lengths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def valid(lengths: Tensor, steps: int) -> Tensor:
    """Return the mask (batch, steps) of the steps before each row's length."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return x (batch, time, ...) with zeros from each row's length on, and no gradient there.

    Whatever stood there, NaN included, meets no arithmetic afterwards, forward or backward.
    """
    if lengths is None:
        return x
    mask = valid(lengths, x.shape[1])
    return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, 0)


def check_lengths(lengths: Tensor, x: Tensor) -> Tensor:
    """Return the lengths of the rows of x (batch, time, ...) as int64.

    Raises:
        ValueError: If they are not integers of shape (batch,) on the device of x, or one is
            negative or greater than time. On a GPU values are not looked at: that would wait for
            it.
        TypeError: If they are no tensor.
    """
    batch, steps = x.shape[:2]
    _check_integers("lengths", lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; it must be ({batch},)")
    if lengths.device != x.device:
        raise ValueError(f"lengths is on {lengths.device}; it must be on {x.device} as the input")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            wrong = low if low < 0 else high
            raise ValueError(f"lengths holds {wrong}; each must be 0 to {steps}, the time of x")
    return lengths.long().contiguous()


def unpack(x: Tensor, cu_seqlens: Tensor, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the padded batch and the lengths of a packed one.

    Args:
        x: (1, total, ...).
        cu_seqlens: Where sequences begin, and total: (sequences + 1,), integers that do not fall;
            on any device, the CPU saves a wait for the GPU.
        longest: The longest length if known, as the time of another unpacked tensor; the values of
            cu_seqlens are then not read.

    Returns:
        (sequences, longest, ...) with zeros in the padding, and lengths (sequences,), int64.

    Raises:
        ValueError: If x has more than one row, or cu_seqlens is none of that.
        TypeError: If cu_seqlens is no tensor.
    """
    if x.shape[0] != 1:
        raise ValueError(f"with cu_seqlens the batch must be 1; it is {x.shape[0]}")
    if longest is None:
        longest = _longest(cu_seqlens, x.shape[1])
    sequences = cu_seqlens.shape[0] - 1
    place = _places(cu_seqlens, x.shape[1], longest, x.device)
    padded = x.new_zeros(sequences * longest, *x.shape[2:]).index_copy(0, place, x[0])
    lengths = cu_seqlens.to(x.device, torch.int64).diff()
    return padded.view(sequences, longest, *x.shape[2:]), lengths


def pack(x: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """Return the packed batch (1, total, ...) of a padded one (sequences, longest, ...)."""
    place = _places(cu_seqlens, total, x.shape[1], x.device)
    packed: Tensor = _take(x.flatten(0, 1), place)
    return packed[None]


def flip(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the valid part of each row of x (batch, time, ...) in time; padding stays."""
    if lengths is None:
        return x.flip(1)
    batch, steps = x.shape[:2]
    t = torch.arange(steps, device=x.device)
    mirrored = torch.where(valid(lengths, steps), lengths[:, None] - 1 - t, t)
    place = mirrored + steps * torch.arange(batch, device=x.device)[:, None]
    flipped: Tensor = _take(x.flatten(0, 1), place.flatten())
    return flipped.view(x.shape)


@torch.library.custom_op("audiomamba::take", mutates_args=())
def _take(x: Tensor, place: Tensor) -> Tensor:
    """Rows of x at places that differ, which index_select's gradient cannot know: it adds."""
    return x.index_select(0, place)


@_take.register_fake
def _(x: Tensor, place: Tensor) -> Tensor:
    return x.new_empty(place.shape[0], *x.shape[1:])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, place = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(place)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    (place,) = ctx.saved_tensors
    return dy.new_zeros(ctx.rows, *dy.shape[1:]).index_copy(0, place, dy), None


_take.register_autograd(_backward, setup_context=_save)


def _places(cu_seqlens: Tensor, total: int, longest: int, device: torch.device) -> Tensor:
    """The row of the flattened padded batch in which each of the packed steps stands."""
    cu_seqlens = cu_seqlens.to(device, torch.int64)
    t = torch.arange(total, device=device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), t, right=True)
    return t + sequence * longest - cu_seqlens[sequence]


def _longest(cu_seqlens: Tensor, total: int) -> int:
    _check_integers("cu_seqlens", cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; it must be (sequences + 1,), "
            "at least (2,)"
        )
    lengths = cu_seqlens.long().diff()
    ends = torch.stack([cu_seqlens[0].long(), cu_seqlens[-1].long(), lengths.min(), lengths.max()])
    first, last, shortest, longest = ends.tolist()  # one wait for the GPU
    if first != 0 or last != total:
        raise ValueError(
            f"cu_seqlens runs from {first} to {last}; it must run from 0 to {total}, the time of x"
        )
    if shortest < 0:
        raise ValueError(f"cu_seqlens falls by {-shortest}; it must not fall")
    return int(longest)


def _check_integers(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} is of type {type(x).__name__}; it must be a tensor of integers: torch.tensor"
        )
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{name} is {x.dtype}; it must be integers")
