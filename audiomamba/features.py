"""Log-mel features of waveforms, each frame of its own samples only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audiomamba_kernels.ragged import check_lengths, valid, zero_padding

WINDOW_SECONDS = 0.025
HOP_SECONDS = 0.010
FLOOR = 1e-10  # of a band's power, before the logarithm


def log_mel(
    waveform: Tensor,
    lengths: Tensor | None = None,
    *,
    n_mels: int = 80,
    sample_rate: int = 16000,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the natural logarithm of the power in mel bands, every 10 ms over 25 ms.

    Frame i is of the samples from i hop to i hop + window and of no others: nothing is mirrored or
    padded at the ends, so that it is the same in a longer recording, in a padded batch, and in a
    stream. Hann windows; Slaney's mel scale and norm, as librosa's and Whisper's, whose lowest
    bands are not too narrow for a window of 25 ms as HTK's would be. Runs in float32, or float64
    if the waveform is, under autocast too.

    Args:
        waveform: Floating point, (batch, samples), in [-1, 1].
        lengths: Samples of each, (batch,), integers; None is all. What follows in a row has no
            effect, be it NaN.
        n_mels: Bands from 0 Hz to half the sample rate.
        sample_rate: Hz.
        normalize: Give each band of each row mean 0 and variance 1 over its frames. The whole row
            must then be there.

    Returns:
        Features (batch, frames, n_mels), zero from the end of a row on, and the frames of each row,
        int64 (batch,), as `count_frames`; a row shorter than a window has none.

    Raises:
        ValueError: If a shape, a type or a length is wrong, or bands are too narrow to be told
            apart.

    Source: librosa's `filters.mel`; Slaney 1998, Auditory Toolbox.
    """
    if waveform.dim() != 2 or not waveform.is_floating_point():
        raise ValueError(
            f"the waveform is {waveform.dtype} of shape {tuple(waveform.shape)}; it must be "
            "floating point, (batch, samples)"
        )
    if lengths is None:
        lengths = torch.full(waveform.shape[:1], waveform.shape[1], device=waveform.device)
    lengths = check_lengths(lengths, waveform)
    window, hop = frame_size(sample_rate)
    counts = count_frames(lengths, sample_rate)
    x = zero_padding(waveform, lengths)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    filters = mel_filters(n_mels, sample_rate).to(x)
    if x.shape[1] < window:
        return x.new_zeros(x.shape[0], 0, n_mels), counts
    with torch.autocast(x.device.type, enabled=False):
        shape = torch.hann_window(window, dtype=x.dtype, device=x.device)
        spectrum = torch.fft.rfft(x.unfold(1, window, hop) * shape)
        power = spectrum.real.square() + spectrum.imag.square()
        features = (power @ filters).clamp(min=FLOOR).log()
    if normalize:
        features = _normalized(features, counts)
    return zero_padding(features, counts), counts


def frame_size(sample_rate: int) -> tuple[int, int]:
    """Return the samples of a window and of a hop."""
    return round(WINDOW_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)


def count_frames(lengths: Tensor, sample_rate: int = 16000) -> Tensor:
    """Return how many frames `log_mel` makes of so many samples: of 16000 at 16 kHz, 98."""
    window, hop = frame_size(sample_rate)
    return ((lengths - window) // hop + 1).clamp(min=0)


def mel_filters(n_mels: int, sample_rate: int) -> Tensor:
    """Return the weights of frequencies in bands, float64 (window // 2 + 1, n_mels).

    Triangles that begin and end at the centres of their neighbours, of equal area.

    Raises:
        ValueError: If there is no band, or one lies between two frequencies of the window.
    """
    window, _ = frame_size(sample_rate)
    if n_mels < 1:
        raise ValueError(f"n_mels is {n_mels}; it must be at least 1")
    top = _mel(sample_rate / 2)
    edges = torch.tensor(
        [_hertz(top * i / (n_mels + 1)) for i in range(n_mels + 2)], dtype=torch.float64
    )
    hertz = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (hertz[:, None] - low) / (centre - low)
    falling = (high - hertz[:, None]) / (high - centre)
    filters = torch.minimum(rising, falling).clamp(min=0) * (2 / (high - low))
    empty = (filters.sum(0) == 0).nonzero()
    if len(empty):
        raise ValueError(
            f"n_mels is {n_mels}: at {sample_rate} Hz band {int(empty[0])} holds no frequency of a "
            f"window of {1000 * WINDOW_SECONDS:g} ms; take fewer bands"
        )
    return filters


def _mel(hertz: float) -> float:
    """Slaney's scale: linear to 1000 Hz, which is 15; then 27 steps for a factor of 6.4."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def _normalized(features: Tensor, counts: Tensor) -> Tensor:
    mask = valid(counts, features.shape[1])[..., None]
    n = counts.clamp(min=1)[:, None, None]
    centred = features - torch.where(mask, features, 0).sum(1, keepdim=True) / n
    variance = torch.where(mask, centred, 0).square().sum(1, keepdim=True) / n
    return centred * (variance + 1e-5).rsqrt()
