"""How a command ends: help, misuse, an error or Ctrl-C, each with its code and one line."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

import audiomamba
from audiomamba import audio
from audiomamba.cli import main
from tests.cli.stand_in import RATE, Run, StandIn, is_one_line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seconds", "0"],
        ["--seconds", "-1"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--seconds", "1e308"],
        ["--prompt-seconds", "1e308"],
        ["--seconds", "long"],
        ["--seconds", "1e-9"],
        ["--num", "0"],
        ["--seed", "-1"],
        ["--temperature", "-0.1"],
        ["--temperature", "nan"],
        ["--top-k", "0"],
        ["--top-k", "99999999999999999999"],
        ["--top-p", "0"],
        ["--top-p", "1.5"],
        ["--format", "aac"],
        ["--prompt-seconds", "1"],
        ["--prompt-seconds", "-1"],
        ["--without-prompt"],
        ["--keep", "2"],
        ["--batch-size", "0"],
        ["--batch-size", "many"],
        ["--stream", "--play"],
        ["--stream", "--num", "2"],
        ["--loud"],
        ["extra"],
    ],
)
def test_misuse_is_one_line_and_exit_code_2(
    run: Run, model: StandIn, tmp_path: Path, arguments: list[str]
) -> None:
    code, out, err = run("generate", "-o", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert err.endswith("; see audiomamba generate --help\n")
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_is_misuse(run: Run) -> None:
    code, _, err = run("generat")
    assert code == 2
    assert is_one_line(err)
    assert "generat" in err


def test_no_command_shows_the_help(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert out == run("--help")[1]
    for command in ("doctor", "evaluate", "fetch", "generate", "prepare"):
        assert f"  {command} " in out


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"audiomamba {audiomamba.__version__}\n", "")


def test_ctrl_c_keeps_what_is_finished(run: Run, model: StandIn, tmp_path: Path) -> None:
    model.interrupt_at = 0
    code, out, err = run("generate", "--seconds", 0.01, "-n", 3, "--seed", 1, "-o", tmp_path)
    assert code == 130
    assert err == "interrupted: 2 of 3 files are finished and kept\n"
    for index in (1, 2):
        assert str(tmp_path / f"stand-in_1_{index}.wav") in out
        assert len(audio.read(tmp_path / f"stand-in_1_{index}.wav", RATE)) == 160
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_is_interrupted_is_not_counted(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audiomamba.output.write_take", interrupted)
    code, _, err = run("generate", "--seconds", 0.1, "-n", 2, "-o", tmp_path, "--quiet")
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert err == "interrupted: 0 of 2 files are finished and kept\n"


def test_ctrl_c_while_loading_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(name: str, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(audiomamba.__dict__, "load", load)
    code, out, err = run("generate", "-o", tmp_path)
    assert (code, out, err) == (130, "", "interrupted: nothing was written\n")


def test_ctrl_c_is_told_by_every_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("audiomamba.doctor.examine", examine)
    assert run("doctor") == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines"), "error: two lines\n"),
        (FileNotFoundError("no model 'x'"), "error: no model 'x'\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "error: Permission denied: /x; change its permissions or name another folder\n",
        ),
        (
            ImportError("needs lightning: pip install it"),
            "error: needs lightning: pip install it\n",
        ),
        (KeyError("x"), "error: KeyError: 'x'; --debug tells where\n"),
        (
            RuntimeError("CUDA error: no CUDA-capable device is detected\nSearch for ..."),
            "error: the device failed (CUDA error: no CUDA-capable device is detected); audiomamba "
            "doctor tells what works here\n",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee ..."),
            "error: the device's memory is full; free some of it, or ask for less at once\n",
        ),
        (RuntimeError("other"), "error: RuntimeError: other; --debug tells where\n"),
    ],
)
def test_an_error_is_one_line_unless_debugging(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, line: str
) -> None:
    def load(name: str, **options: Any) -> None:
        raise error

    monkeypatch.setitem(audiomamba.__dict__, "load", load)
    assert run("generate", "-o", tmp_path) == (1, "", line)
    with pytest.raises(type(error)):
        main(["generate", "-o", str(tmp_path), "--debug"])


@pytest.mark.parametrize("how", ["missing", "pickle", "truncated", "mismatched", "file"])
def test_a_bad_model_is_one_line(run: Run, small: Path, tmp_path: Path, how: str) -> None:
    name, weights, config = small, small / "model.safetensors", small / "config.json"
    if how == "missing":
        name = tmp_path / "nowhere"
    elif how == "pickle":
        name = tmp_path / "model.pt"
        name.write_bytes(b"x")
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "mismatched":
        config.write_text(config.read_text().replace('"d_model": 4', '"d_model": 6'))
    elif how == "file":
        name = weights
    code, out, err = run("generate", "-m", name, "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert name.name in err
    assert not list((tmp_path / "out").iterdir())
