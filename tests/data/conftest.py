"""A corpus in folders named like splits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.audio_files import make


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    make(folder, "train/b10.wav", "train/b9.flac", "train/deep/er/c.wav", "test/a.wav")
    make(folder, "validation/v.wav", rate=22050)
    (folder / "README.md").write_text("not audio")
    make(folder, "train/.hidden.wav", ".cache/x.wav")
    return folder


@pytest.fixture
def killed() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid
