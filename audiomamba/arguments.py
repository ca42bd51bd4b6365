"""What a user gives is looked at: lengths, devices, waveforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.sampling import check_real

Waveform = NDArray[np.float32]


def count_samples(seconds: float, sample_rate: int) -> int:
    """Return the nearest count of samples.

    Raises:
        ValueError: If that is no sample, or seconds is not finite or no number.
    """
    check_real(seconds, "seconds")
    if not 0.5 / sample_rate < seconds < float("inf"):
        raise ValueError(f"seconds is {seconds}; it must be positive, and long enough for a sample")
    return round(seconds * sample_rate)


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that can be used here; raise ValueError with the reason if it cannot."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {str(device)!r}; choose 'cpu', 'cuda' or 'cuda:1'") from error
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise ValueError(f"device is {str(device)!r}, but PyTorch sees {count} CUDA devices")
    elif place.type != "cpu":
        raise ValueError(f"device is {str(device)!r}; choose 'cpu', 'cuda' or 'cuda:1'")
    return place


def check_mono(prompt: Any) -> Waveform:
    """Return a prompt as an array (samples,)."""
    waveform = check_waveform(prompt, "the prompt")
    if waveform.ndim != 1:
        raise ValueError(f"the prompt has shape {waveform.shape}; it must be mono, (samples,)")
    return waveform


def check_waveform(waveform: Any, name: str) -> Waveform:
    """Return a waveform as an array, (samples,) or (batch, samples), finite and not empty."""
    wave: Any = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else waveform
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
    return wave.astype(np.float32, copy=False)
