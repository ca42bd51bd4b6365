"""A command that is run, and the model it finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import audiomamba
from audiomamba import checkpoint
from audiomamba.cli import main
from audiomamba.config import ModelConfig, Tier
from audiomamba.models.waveform import WaveformModel
from tests.cli.stand_in import StandIn


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(audiomamba.__dict__, "load", lambda name, **options: stand_in)
    return stand_in


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tier = Tier(mixer="lti", complex=True, n_layers=1, d_state=2, d_conv=2)
    config = ModelConfig(d_model=4, tiers=(tier, tier), pools=(2,))
    folder = tmp_path / "small"
    checkpoint.save(folder, config, WaveformModel(config).state_dict())
    return folder
