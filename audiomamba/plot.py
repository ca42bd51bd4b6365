"""A waveform as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiomamba.audio import naming
from audiomamba.files import replacing

WINDOW = 1024


def figure_class() -> Any:
    """Return matplotlib's Figure, which draws without a screen.

    Raises:
        ModuleNotFoundError: If matplotlib is missing; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"pictures need matplotlib ({error}); install it: pip install matplotlib"
        ) from error
    return Figure


def spectrogram(waveform: NDArray[np.float32], sample_rate: int, path: str | Path) -> None:
    """Write what `png` draws; the file appears whole or not at all."""
    picture = png(waveform, sample_rate)
    with naming(Path(path)), replacing(path) as part:
        part.write_bytes(picture)


def png(waveform: NDArray[np.float32], sample_rate: int) -> bytes:
    """Draw the waveform above its spectrogram, in dB, as a PNG.

    Args:
        waveform: (samples,) in [-1, 1], at least 1024 samples.
        sample_rate: Hz.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        ValueError: If the waveform is shorter than a window.
    """
    if len(waveform) < WINDOW:
        raise ValueError(f"{len(waveform)} samples are too few to draw; give at least {WINDOW}")
    figure = figure_class()(figsize=(12, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(1, 3))
    seconds = np.arange(len(waveform)) / sample_rate
    above.plot(seconds, waveform, linewidth=0.2)
    above.set(ylim=(-1, 1), ylabel="amplitude")
    # The floor keeps digital silence from being minus infinity; of a window alone matplotlib warns.
    longer = np.pad(waveform, (0, 1))
    noisy = longer + np.float32(1e-7) * np.random.default_rng(0).standard_normal(len(longer))
    *_, image = below.specgram(noisy, NFFT=WINDOW, Fs=sample_rate, noverlap=WINDOW // 2, vmin=-140)
    below.set(xlabel="seconds", ylabel="Hz", xlim=(0, seconds[-1]))
    figure.colorbar(image, ax=below, label="dB per Hz")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    return drawn.getvalue()
