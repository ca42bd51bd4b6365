"""Rows of a cache that holds the states of more streams than a batch has.

A negative index is a padded row of the batch: it has no state. Values are never looked at, so that
a GPU is not waited for and a CUDA graph can hold what happens here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_integers(name: str, x: Tensor | None, batch: int) -> None:
    """Refuse what is not one integer for each row of a batch; None is nothing to check."""
    whole = x is None or not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    if x is not None and (tuple(x.shape) != (batch,) or not whole):
        raise ValueError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)}; it must hold an integer for each row "
            f"of the batch, ({batch},)"
        )


def read_rows(cache: Tensor, indices: Tensor | None) -> Tensor:
    """Return the cache itself, or a copy of its rows `indices`, anything for a negative one."""
    return cache if indices is None else cache[indices.long().clamp(min=0)]


def write_rows(cache: Tensor, indices: Tensor | None, new: Tensor) -> None:
    """Write new[i] into cache[indices[i]], nothing for a negative one."""
    if indices is None:
        cache.copy_(new)
        return
    if not len(indices):
        return
    valid = indices >= 0
    # A padded row writes what the first valid row writes; if there is none, what is there.
    first = valid.int().argmax()
    source = torch.where(valid, torch.arange(len(indices), device=indices.device), first)
    target = indices[source].long().clamp(min=0)
    cache[target] = torch.where(valid.any(), new[source].to(cache.dtype), cache[target])


def mask_rows(y: Tensor, indices: Tensor | None) -> Tensor:
    """Return y with zeros in the rows of negative indices."""
    if indices is None:
        return y
    return torch.where((indices >= 0).view(-1, *[1] * (y.dim() - 1)), y, 0)
