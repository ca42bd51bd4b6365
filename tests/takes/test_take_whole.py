"""A take is there with all that was asked for beside it, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audiomamba import output
from tests.takes.records import Run

ASKED = ("--seconds", 0.1, "-n", 3, "--batch-size", 1, "--spectrogram", "--save-state")
ENDS = (".json", ".png", ".safetensors", ".wav")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("options", "least"),
    [((), 10_000), (("--save-state",), 14_600), (("--spectrogram",), 800_000)],
    ids=["sounds", "states", "pictures"],
)
def test_room_is_asked_for_what_is_beside(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    least: int,
) -> None:
    asked = ("--seconds", 0.1, "-n", 2, *options)
    for free, code in ((least, 1), (10 * least, 0)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(output.shutil, "disk_usage", lambda folder, usage=usage: usage)
        assert run(*asked)[0] == code
        assert bool(list(tmp_path.glob("*.wav"))) == (code == 0)


def stop_at(monkeypatch: pytest.MonkeyPatch, end: str, error: BaseException) -> None:
    """Let an error come as a file of the second take is written."""
    write = {"write_bytes": Path.write_bytes, "write_text": Path.write_text}

    def writing(how: str) -> Any:
        def written(path: Path, *data: Any, **options: Any) -> int:
            if f"small_1_1{end}" in path.name:
                raise error
            return write[how](path, *data, **options)

        return written

    for how in write:
        monkeypatch.setattr(Path, how, writing(how))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), FULL], ids=["interrupted", "full"])
def test_a_take_that_is_not_finished_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, error: BaseException
) -> None:
    with monkeypatch.context() as during:
        stop_at(during, end, error)
        code, _, err = run(*ASKED)
    assert code == (1 if error is FULL else 130)
    assert {path.name for path in tmp_path.iterdir()} == {f"small_1_0{end}" for end in ENDS}
    if error is FULL:
        assert str(tmp_path / f"small_1_1{end}") in err


def test_a_take_that_is_not_finished_leaves_an_older_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*ASKED)
    before = {end: (tmp_path / f"small_1_1{end}").read_bytes() for end in ENDS}
    with monkeypatch.context() as during:
        stop_at(during, ".png", KeyboardInterrupt())
        assert run(*ASKED, "--overwrite")[0] == 130
    assert {end: (tmp_path / f"small_1_1{end}").read_bytes() for end in ENDS} == before


@pytest.mark.parametrize("renamed", range(1, 5))
def test_an_interruption_as_a_take_appears_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    rename, appeared = os.replace, []

    def replace(old: Path, new: Path) -> None:
        rename(old, new)
        if new.parent == tmp_path:
            appeared.append(new.suffix)
            if len(appeared) == renamed:
                raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    code, _, err = run(*ASKED)
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert err == "interrupted: 0 of 3 files are finished and kept\n"
    assert ".wav" not in appeared[:3]
