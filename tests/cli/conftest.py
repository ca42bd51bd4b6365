"""A command that is run, and the model it finds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import audiomamba
from tests.cli.stand_in import StandIn
from tests.commands import call, save_small


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(audiomamba.__dict__, "load", lambda name, **options: stand_in)
    return stand_in


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return partial(call, capsys)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return save_small(tmp_path / "small")
