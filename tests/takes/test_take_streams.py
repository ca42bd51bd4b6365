"""`audiomamba generate --stream`: the samples of the file, as they are made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import audiomamba
from audiomamba import audio
from audiomamba.audiomodel import AudioModel
from audiomamba.cli import main
from audiomamba.engine import launches
from tests.takes.records import RATE


def test_a_stream_is_the_samples_of_the_file(
    small: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "-m", str(small), "--seconds", "0.5", "--seed", "1", "--stream"])
    raw, err = capfdbinary.readouterr()
    assert err == b"seed 1\n"
    with pytest.raises(SystemExit):
        main(["generate", "-m", str(small), "--seconds", "0.5", "--seed", "1", "-o", str(tmp_path)])
    written = audio.read(tmp_path / "small_1_0.wav", RATE)
    assert np.array_equal(np.frombuffer(raw, "<i2"), written * 32768)


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "wav"],
        ["--output-dir", "."],
        ["--overwrite", "--gallery", "x.html"],
        ["--spectrogram", "--rank", "--keep", "1", "--play"],
        ["--save-state"],
        ["--batch-size", "auto"],
    ],
    ids=" ".join,
)
def test_a_stream_takes_no_options_of_files(
    options: list[str], small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "-m", str(small), "--stream", *options])
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    named = err.split("it does not go with ")[1].split(";")[0].split(", ")
    assert sorted(named) == sorted(word for word in options if word.startswith("--"))


def test_a_closed_pipe_ends_in_silence(small: Path, tmp_path: Path) -> None:
    for options in ("--stream --seconds 20", f"-n 99 --seconds 0.1 -o {tmp_path} --quiet"):
        command = f"{sys.executable} -u -m audiomamba generate -m {small} {options}"
        done = subprocess.run(
            ["bash", "-c", command + " | head -c 1 > /dev/null; echo ${PIPESTATUS[0]} >&2"],
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stderr.splitlines()
        assert [line for line in said if not line.startswith("seed")] == ["141"], done.stderr
    assert not list(tmp_path.glob(".*"))
    assert len(list(tmp_path.glob("*.wav"))) == len(list(tmp_path.glob("*.json"))) > 0


def test_a_stream_that_cannot_be_written_is_told(small: Path) -> None:
    command = [sys.executable, "-m", "audiomamba", "generate", "-m", str(small), "--stream"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=-1, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "error: standard output takes no more (No space left on device); free some space where it "
        "goes, or send it elsewhere; 0.00 of 10 s were made"
    ]


def test_ctrl_c_tells_how_much_of_a_stream_was_made(
    small: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stream(model: AudioModel, **options: Any) -> Iterator[np.ndarray]:
        yield np.zeros((1, RATE // 2), np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioModel, "stream", stream)
    with pytest.raises(SystemExit, match="130"):
        main(["generate", "-m", str(small), "--stream", "--quiet"])
    assert capfd.readouterr().err == "interrupted: 0.50 of 10 s were made\n"


def test_a_stream_of_a_gpu_ends_where_who_listens_goes(
    small: Path, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu == "cpu":  # where a sample takes ten milliseconds
        monkeypatch.setattr(launches, "BLOCK", 64)
    model = audiomamba.load(small, device=gpu)
    stream = model.stream(seed=1)
    begun = next(stream)
    stream.close()
    assert np.array_equal(model.generate(samples=begun.shape[1], seed=1), begun)
