"""Files that are there already, folders that take none, and disks that fill up."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audiomamba import output
from audiomamba.cli import main
from tests.cli.stand_in import Run, StandIn, is_one_line


@pytest.mark.parametrize("existing", ["stand-in_5_1.wav", "stand-in_5_1.json"])
def test_nothing_is_overwritten_unasked(
    run: Run, model: StandIn, tmp_path: Path, existing: str
) -> None:
    (tmp_path / existing).write_text("precious")
    arguments = ("generate", "--seconds", 0.01, "--seed", 5, "--num", 2, "-o", tmp_path)
    code, _, err = run(*arguments)
    assert code == 1
    assert is_one_line(err)
    assert f"{tmp_path / existing} is there already; add --overwrite" in err
    assert not model.calls
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert run(*arguments, "--overwrite")[0] == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_an_unwritable_folder_is_found_before_the_model_is_loaded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("generate", "-m", "no such model", "-o", tmp_path / "file" / "out")
    assert code == 1
    assert is_one_line(err)
    assert "file/out (Not a directory); name another folder with --output-dir" in err


def test_a_read_only_folder_is_found(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    code, _, err = run("generate", "-o", tmp_path)
    assert code == 1
    assert is_one_line(err)
    assert f"cannot write into {tmp_path} (Permission denied); name another folder" in err


def test_too_little_space_is_found_before_generating(
    run: Run, model: StandIn, tmp_path: Path
) -> None:
    code, _, err = run("generate", "--seconds", "1e9", "-n", 10**9, "-o", tmp_path)
    assert code == 1
    assert is_one_line(err)
    assert "B free and the files take 32.0ZB; free some space" in err
    assert not model.calls


def test_the_space_is_told_in_a_unit_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.shutil, "disk_usage", lambda folder: SimpleNamespace(free=512))
    with pytest.raises(OSError, match=r"has 512B free and the files take 32\.0kB; free some"):
        output.check_space(tmp_path, 32000)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errno.ENOSPC, "free some space or name another folder"),
        (errno.EDQUOT, "free some of your quota or name another folder"),
        (errno.EFBIG, "ask for less or name a folder that takes larger files"),
    ],
)
def test_a_disk_that_fills_up_keeps_what_is_finished(
    run: Run,
    model: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    remedy: str,
) -> None:
    original = Path.write_bytes

    def write_bytes(path: Path, data: Any) -> int:
        if "_0.wav" in path.name:
            original(path, bytes(data)[:100])
            raise OSError(error, os.strerror(error))
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    code, out, err = run("generate", "--seconds", 0.01, "-n", 2, "--seed", 1, "-o", tmp_path)
    assert code == 1
    assert is_one_line(err)
    kept = "1 of 2 files are finished and kept"
    assert (
        err == f"error: {os.strerror(error)}: {tmp_path / 'stand-in_1_0.wav'}; {remedy}; {kept}\n"
    )
    assert str(tmp_path / "stand-in_1_1.wav") in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "stand-in_1_1.json",
        "stand-in_1_1.wav",
    ]


def test_a_full_disk_names_the_record(
    run: Run, model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_text(path: Path, text: str, encoding: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    code, _, err = run("generate", "--seconds", 0.01, "--seed", 1, "-o", tmp_path)
    assert code == 1
    assert is_one_line(err)
    assert f"No space left on device: {tmp_path / 'stand-in_1_0.json'}; free some" in err


def test_a_failure_to_write_stops_the_other_takes(
    model: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as failure:  # holds the frames of the error
        main(["generate", "--seconds", "0.01", "-n", "3", "-o", str(tmp_path), "--debug"])
    assert model.closed
    assert failure.tb is not None
