"""A waveform that a user gives is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
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
    wave = as_floats(waveform, name)
    if wave.ndim not in (1, 2):
        raise ValueError(
            f"{name} has shape {wave.shape}; it must be (samples,) or (batch, samples)"
        )
    if wave.size == 0:
        raise ValueError(f"{name} is empty")
    if not np.isfinite(wave).all():
        at = np.unravel_index(int(np.argmin(np.isfinite(wave))), wave.shape)[-1]
        raise ValueError(f"{name} is NaN or infinite at sample {at}")
    return wave


def as_floats(waveform: Any, name: str) -> Waveform:
    """Return an array or tensor of any floating-point type as a float32 array of PyTorch's layout.

    Raises:
        ValueError: If it is of another type.
    """
    wave = waveform
    if isinstance(waveform, Tensor) and waveform.is_floating_point():
        wave = waveform.detach().cpu().float().numpy()
    if not isinstance(wave, np.ndarray) or wave.dtype.kind != "f":
        kind = getattr(wave, "dtype", type(wave).__name__)
        raise ValueError(
            f"{name} is {kind}; it must be a floating-point array or tensor in [-1, 1], such as "
            "16-bit integers divided by 32768"
        )
    result: Waveform = np.asarray(wave, np.float32, order="C")
    return result
