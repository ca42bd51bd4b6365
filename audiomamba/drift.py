"""Whether a long generation has run away: into noise, into silence, or into one held tone.

Each window of a second gets a level, a spectral flatness and its strongest tone; what leaves the
limits for some seconds is a fault. The defaults stand clear of ten minutes of real piano (the test
clips of the shipped model, through its mu-law tokens), where

- the flatness of a window is 0.0009 in the median and 0.058 at most, while white noise has 0.56
  and pink noise 0.14;
- the level is -33 to -17 dBFS (5th to 95th percentile), and below -60 for one second on end;
- one tone is the strongest, with 0.3 of the power, for five seconds at most.

`benchmarks/drift.py --data TOKENS` measures recordings and models so. Noise that falls by much more
than 3 dB an octave is as little flat as music, and is not found; nor is a tone held softly below
louder notes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FRAME = 2048  # samples; frame, hop and floor are librosa's defaults
HOP = 512
FLOOR = 1e-10  # of a bin's power
SILENT = 1e-6  # mean square of a frame, -60 dBFS
SPREAD = 2  # bins to either side of a peak, which hold the main lobe of a Hann window

_HANN = np.hanning(FRAME + 1)[:-1]  # periodic

Array = NDArray[np.float64]
Kind = Literal["noise", "silence", "tone"]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What was measured; arrays are float64 (windows,).

    Attributes:
        window: Length of a window in seconds.
        bin: Width of a bin of the spectrum in Hz.
        level: RMS in dBFS, where 0 is a square wave of full scale; -120 at least.
        flatness: Geometric over arithmetic mean of the power spectrum, 0 to 1, averaged over the
            frames above -60 dBFS; NaN if there is none.
        tone: Frequency of the strongest tone in Hz, to the nearest bin.
        share: Its share of the power, 0 to 1; 0 in digital silence.
    """

    window: float
    bin: float
    level: Array
    flatness: Array
    tone: Array
    share: Array


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a fault begins; the figures behind the defaults are at the top of this file.

    `LIMITS_OF` has those of the shipped models, by name.

    Attributes:
        noise_flatness: Noise is flatter than this,
        noise_level: and louder than this, in dBFS: softer noise is the hiss of a recording,
        noise_seconds: for so long.
        silence_level: Silence is softer than this, in dBFS,
        silence_seconds: for so long.
        tone_share: A held tone has more of the power than this,
        tone_seconds: within a bin of where it was a window before, for so long.
    """

    noise_flatness: float = 0.1
    noise_level: float = -45.0
    noise_seconds: float = 3.0
    silence_level: float = -60.0
    silence_seconds: float = 5.0
    tone_share: float = 0.3
    tone_seconds: float = 8.0


LIMITS = Limits()
# Stricter for music, none of whose recordings has two loud seconds so flat; one alone may be a note
# after silence. A word's clip of a second is silent if all of it is.
LIMITS_OF = {
    "piano": Limits(noise_flatness=0.01, noise_level=-30, noise_seconds=2),
    "digits": Limits(noise_seconds=1, silence_seconds=1),
}


class Fault(NamedTuple):
    """A stretch outside the limits, in seconds; one that stops at the end never came back."""

    kind: Kind
    start: float
    stop: float


def measure(waveform: NDArray[np.floating[Any]] | Tensor, sample_rate: int) -> Curves:
    """Measure a waveform window by window; memory beyond the result is that of one window.

    A window is one second, or one frame if that is longer; what is left over at the end is not
    measured. Frames are of 2048 samples, 512 apart, and stay inside their window. Their flatness is
    `librosa.feature.spectral_flatness(y=window, center=False)`, the measure of J. D. Johnston 1988,
    "Transform coding of audio signals using perceptual noise criteria", section II. Here frames
    below -60 dBFS are left out: the floor of 1e-10 alone makes digital silence flat.

    Args:
        waveform: Floating point, (samples,), in [-1, 1].
        sample_rate: Hz.

    Raises:
        ValueError: If it is not one channel of finite floating-point numbers, or is shorter than a
            window, or the sample rate is not positive.
    """
    if sample_rate < 1:
        raise ValueError(f"sample_rate is {sample_rate}; it must be positive, in Hz")
    wave = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else waveform
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise ValueError(
            f"the waveform is {wave.dtype} {wave.shape}; it must be floating point, (samples,)"
        )
    if not np.isfinite(wave).all():
        raise ValueError("the waveform holds a sample that is NaN or infinite")
    size = max(sample_rate, FRAME)
    if len(wave) < size:
        raise ValueError(f"the waveform has {len(wave)} samples; a window needs {size}")
    starts = range(0, len(wave) - size + 1, size)
    rows = [_window(wave[at : at + size].astype(np.float64), sample_rate) for at in starts]
    level, flatness, tone, share = np.array(rows).T
    return Curves(
        window=size / sample_rate,
        bin=sample_rate / FRAME,
        level=level,
        flatness=flatness,
        tone=tone,
        share=share,
    )


def faults(curves: Curves, limits: Limits = LIMITS) -> list[Fault]:
    """Return the stretches outside the limits, by their start; an empty list if all is well."""
    noisy = (curves.flatness > limits.noise_flatness) & (curves.level > limits.noise_level)
    silent = curves.level < limits.silence_level
    tonal = (curves.share > limits.tone_share) & ~silent
    moved = np.abs(np.diff(curves.tone, prepend=np.nan)) > 1.5 * curves.bin
    found = [
        *_stretches("noise", noisy, curves.window, limits.noise_seconds),
        *_stretches("silence", silent, curves.window, limits.silence_seconds),
        *_stretches("tone", tonal, curves.window, limits.tone_seconds, moved),
    ]
    return sorted(found, key=lambda fault: fault.start)


def _window(wave: Array, sample_rate: int) -> tuple[float, float, float, float]:
    """Return level, flatness, tone and share of (samples,)."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::HOP]
    power = np.abs(np.fft.rfft(frames * _HANN)) ** 2
    raised = np.maximum(power, FLOOR)
    flatness = np.exp(np.log(raised).mean(axis=1)) / raised.mean(axis=1)
    heard = flatness[np.mean(frames**2, axis=1) > SILENT]
    total = power.sum(axis=0)
    peak = int(total.argmax())
    lobe = total[max(0, peak - SPREAD) : peak + SPREAD + 1].sum()
    return (
        10 * math.log10(max(float(np.mean(wave**2)), 1e-12)),
        heard.mean() if len(heard) else np.nan,
        peak * sample_rate / FRAME,
        lobe / total.sum() if lobe else 0.0,
    )


def _stretches(
    kind: Kind,
    outside: NDArray[np.bool_],
    window: float,
    seconds: float,
    anew: NDArray[np.bool_] | None = None,
) -> Iterator[Fault]:
    """Yield runs of windows outside of at least so many seconds; one ends where another is anew."""
    begins = outside & ~np.roll(outside, 1)
    begins[0] = outside[0]
    if anew is not None:
        begins |= outside & anew
    for start in np.flatnonzero(begins):
        ends = ~outside[start + 1 :] | begins[start + 1 :]
        stop = start + 1 + (int(ends.argmax()) if ends.any() else len(ends))
        if (stop - start) * window >= seconds:
            yield Fault(kind, float(start * window), float(stop * window))
