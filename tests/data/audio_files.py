"""Folders of audio to prepare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def make(folder: Path, *names: str, samples: int = 901, rate: int = 16000) -> None:
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, samples + seed)
        soundfile.write(path, noise, rate)
