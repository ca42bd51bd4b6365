"""What the command line says when something is wrong: one line, what to do, and early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from audiomamba.cli import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert isinstance(stop.value.code, int)
        return stop.value.code, err

    return run


def test_a_gallery_is_a_page(run: Run, tmp_path: Path) -> None:
    code, err = run("generate", "-o", tmp_path, "--gallery", tmp_path / "best.txt")
    assert code == 2
    assert f"--gallery {tmp_path / 'best.txt'} must end in .html or .htm; see" in err
    assert not list(tmp_path.iterdir())
