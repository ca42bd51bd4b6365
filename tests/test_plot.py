from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from audiomamba import plot


@pytest.mark.parametrize("samples", [5000, plot.WINDOW, plot.WINDOW + 1])
def test_a_picture_is_written_and_nothing_beside_it(tmp_path: Path, samples: int) -> None:
    waveform = np.sin(np.arange(samples) / 9).astype(np.float32)
    waveform[:500] = 0  # digital silence is drawn too
    plot.spectrogram(waveform, 16000, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_too_short_a_waveform_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 samples are too few"):
        plot.spectrogram(np.zeros(3, np.float32), 16000, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_missing_matplotlib_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plot.figure_class()
