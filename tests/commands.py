"""Commands that are run in this process, and a model with which they are quick."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from audiomamba import checkpoint
from audiomamba.cli import main
from audiomamba.config import ModelConfig, Tier
from audiomamba.models.waveform import WaveformModel


def call(capture: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run `audiomamba` with arguments; return its exit code, output and errors."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capture.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def save_small(folder: Path) -> Path:
    """Write a small random model into a folder, and return that."""
    torch.manual_seed(0)
    tier = Tier(mixer="lti", complex=True, n_layers=1, d_state=2, d_conv=2)
    config = ModelConfig(d_model=4, tiers=(tier, tier), pools=(2,))
    checkpoint.save(folder, config, WaveformModel(config).state_dict())
    return folder
