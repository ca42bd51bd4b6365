"""A waveform that a user gives is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Waveform = NDArray[np.float32]


def check_waveform(waveform: Any, name: str) -> Waveform:
    """Return a waveform as an array, (samples,) or (batch, samples), finite and not empty.

    Args:
        waveform: A floating-point array or tensor.
        name: What an error calls it.

    Raises:
        ValueError: If it is of another type or shape, empty, NaN or infinite.
    """
    wave = waveform
    if isinstance(waveform, Tensor):
        wave = waveform.detach().cpu()
        wave = (wave.float() if wave.dtype == torch.bfloat16 else wave).numpy()
    if not isinstance(wave, np.ndarray) or wave.dtype.kind != "f":
        kind = wave.dtype if isinstance(wave, np.ndarray) else type(wave).__name__
        raise ValueError(f"{name} is {kind}; it must be a floating-point array or tensor")
    if wave.ndim not in (1, 2):
        raise ValueError(
            f"{name} has shape {wave.shape}; it must be (samples,) or (batch, samples)"
        )
    if wave.size == 0:
        raise ValueError(f"{name} is empty")
    if not np.isfinite(wave).all():
        at = np.unravel_index(int(np.argmin(np.isfinite(wave))), wave.shape)[-1]
        raise ValueError(f"{name} is NaN or infinite at sample {at}")
    result: Waveform = wave.astype(np.float32, copy=False)
    return result
