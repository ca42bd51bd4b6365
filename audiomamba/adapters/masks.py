"""Masks of padded batches as lengths."""

from __future__ import annotations

import torch
from torch import Tensor


def kept_lengths(kept: Tensor, x: Tensor, name: str) -> Tensor:
    """Return how many frames of each row a mask keeps, int64 (batch,).

    Args:
        kept: (batch, time), 1 or True on frames, which come first, and 0 or False on padding.
        x: What it is of, (batch, time, ...).
        name: What a caller knows the mask as.

    Raises:
        ValueError: If its shape is not that of x, or padding stands before a frame. On a GPU values
            are not looked at: that would wait for it.
    """
    if kept.shape != x.shape[:2]:
        raise ValueError(
            f"{name} has shape {tuple(kept.shape)}; it must be {tuple(x.shape[:2])}, the batch and "
            "time of the input, before subsampling"
        )
    kept = kept.bool()
    if kept.device.type == "cpu" and not torch.compiler.is_compiling():
        row = (kept[:, 1:] & ~kept[:, :-1]).any(1)
        if row.any():
            raise ValueError(
                f"{name} has padding before a frame in row {int(row.int().argmax())}; padding must "
                "stand at the end, and the mask have the polarity that is documented"
            )
    return kept.sum(1)
