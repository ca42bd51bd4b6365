"""`audiomamba prepare` and `audiomamba evaluate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiomamba import audio
from audiomamba.data import TokenStore
from audiomamba.tokenizer import Tokenizer
from tests.cli.stand_in import RATE, Run, StandIn, is_one_line, noise


def test_prepare_turns_a_folder_into_tokens(run: Run, tmp_path: Path) -> None:
    for index, split in enumerate(["train", "train", "validation", "test"]):
        path = tmp_path / "music" / split / f"{index}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(22050, index), 22050)
    soundfile.write(tmp_path / "music" / "train" / "silent.wav", np.zeros(100), RATE)
    out_dir = tmp_path / "out"
    options = ("--sample-rate", 8000, "--encoding", "linear", "--bits", 9, "--speeds", "0.9,1")
    code, out, err = run("prepare", tmp_path / "music", out_dir, *options)
    assert (code, err) == (0, "note: train/silent.wav is silent\n")
    assert out.splitlines()[0].split() == ["train", "6", "files", "0.00", "hours"]
    assert out.splitlines()[-1] == str(out_dir)
    store = TokenStore(out_dir)
    assert (store.sample_rate, store.tokenizer) == (8000, Tokenizer("linear", 9))
    assert store.files("test")[0].samples == 8000

    code, _, err = run("prepare", tmp_path / "music", out_dir)
    assert code == 1
    assert is_one_line(err)
    assert "--overwrite" in err
    assert run("prepare", tmp_path / "music", out_dir, "--overwrite", "--quiet") == (
        0,
        f"{out_dir}\n",
        "note: train/silent.wav is silent\n",
    )

    (tmp_path / "music" / "train" / "bad.mp3").write_text("no audio")
    code, _, err = run("prepare", tmp_path / "music", tmp_path / "again")
    assert code == 1
    assert is_one_line(err)
    assert "bad.mp3" in err
    assert "--skip-bad leaves such files out" in err
    code, _, err = run("prepare", tmp_path / "music", tmp_path / "again", "--skip-bad")
    assert code == 0
    assert "skipped train/bad.mp3: " in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere", "out"],
        ["here"],
        ["here", "out", "--bits", "17"],
        ["here", "out", "--speeds", "fast"],
        ["here", "a.txt"],
    ],
)
def test_prepare_misused_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "a.txt").write_text("")
    code, _, err = run("prepare", *arguments)
    assert code == 2
    assert is_one_line(err)


def test_evaluate_scores_a_file(run: Run, model: StandIn, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", noise(RATE, 0), RATE)
    assert run("evaluate", tmp_path / "a.wav") == (0, "2.5000 bits per sample\n", "")
    assert run("evaluate", tmp_path / "a.wav", "--seconds", 0.5)[0] == 0
    assert [len(call["waveform"]) for call in model.calls] == [16000, 8000]


def test_evaluate_refuses_a_folder_of_audio(run: Run, model: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "music" / "test" / "a.wav"
    path.parent.mkdir(parents=True)
    audio.write(path, noise(99, 0), RATE)
    code, _, err = run("evaluate", tmp_path / "music")
    assert code == 1
    assert is_one_line(err)
    make = f"audiomamba prepare {tmp_path / 'music'} TOKENS, and give TOKENS"
    assert f"holds no prepared tokens; make them: {make}" in err


def test_evaluate_scores_tokens_as_it_scores_their_audio(
    run: Run, small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "music" / "validation" / "a.wav"
    path.parent.mkdir(parents=True)
    audio.write(path, noise(1001, 0), RATE)
    assert run("prepare", tmp_path / "music", tmp_path / "out")[0] == 0
    arguments = ("evaluate", "-m", small)
    code, out, err = run(*arguments, tmp_path / "out", "--split", "validation")
    assert (code, err) == (0, "")
    assert 4 < float(out.removesuffix(" bits per sample\n")) < 16
    assert out == run(*arguments, path)[1]
    assert out != run(*arguments, path, "--seconds", 0.01)[1]
    code, _, err = run(*arguments, tmp_path / "out")
    assert code == 1
    assert is_one_line(err)
    assert "no test files" in err
