"""`audiomamba generate` with a small model, on the CPU and on what stands for a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from audiomamba import checkpoint
from audiomamba.cli import main
from audiomamba.config import ModelConfig, Tier
from audiomamba.models.waveform import WaveformModel
from tests.cuda_on_cpu import emulate
from tests.takes.records import Run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tier = Tier(mixer="lti", complex=True, n_layers=1, d_state=2, d_conv=2)
    config = ModelConfig(d_model=4, tiers=(tier, tier), pools=(2,))
    folder = tmp_path_factory.mktemp("models") / "small"
    checkpoint.save(folder, config, WaveformModel(config).state_dict())
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], small: Path, tmp_path: Path) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        words = ["generate", "-m", small, "-o", tmp_path, "--seed", 1, *arguments]
        if "--resume" in arguments:
            words = [word for word in words if word not in ("--seed", 1)]
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return run


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device of the CUDA engine, which runs on the CPU where there is no GPU."""
    if torch.cuda.is_available():
        return "cuda"
    emulate(monkeypatch)
    for module in ("engine.choice", "audiomodel"):
        monkeypatch.setattr(f"audiomamba.{module}.choose_engine", lambda network: "cuda")
    return "cpu"
