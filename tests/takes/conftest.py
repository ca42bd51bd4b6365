"""`audiomamba generate` with a small model, on the CPU and on what stands for a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.commands import call, save_small
from tests.cuda_on_cpu import emulate
from tests.takes.records import Run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], small: Path, tmp_path: Path) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        words = ["generate", "-m", small, "-o", tmp_path, "--seed", 1, *arguments]
        if "--resume" in arguments:
            words = [word for word in words if word not in ("--seed", 1)]
        return call(capfd, *words)

    return run


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device of the CUDA engine, which runs on the CPU where there is no GPU."""
    if torch.cuda.is_available():
        return "cuda"
    emulate(monkeypatch)
    for module in ("engine.choice", "audiomodel"):
        monkeypatch.setattr(f"audiomamba.{module}.choose_engine", lambda *_: "cuda")
    return "cpu"
