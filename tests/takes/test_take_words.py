"""`audiomamba generate --sure`: takes in which a classifier hears a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import audiomamba
from audiomamba import audio
from tests.takes.records import RATE, Run, record

SHORT = ("--seconds", 0.1)


@pytest.fixture
def asking(small: Path, tmp_path: Path) -> Path:
    """Make the small model ask for words that are never as clear."""
    folder = tmp_path / "asking"
    model = audiomamba.load(small)
    model.sure = 0.9999
    model.save(folder)
    return folder


def test_takes_without_a_clear_word_are_told(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*SHORT, "-n", 2, "--sure", 1)
    assert code == 0
    for i, line in enumerate(err.splitlines()):
        found = record(tmp_path / f"small_1_{i}.wav")
        assert found["drawn"] == 8
        assert 8 * i <= found["index"] < 8 * (i + 1)
        assert line == (
            f"warning: small_1_{i}.wav holds no clear word; it is the clearest of 8: "
            f"{found['word']}, {found['probability']:.2f}"
        )
    assert "0.2 s of audio of 1.6 s drawn in" in out


def test_a_take_is_made_again_by_its_index(run: Run, small: Path, tmp_path: Path) -> None:
    assert run(*SHORT, "-n", 3, "--sure", 0.3, "--quiet")[0] == 0
    model = audiomamba.load(small)
    for i in range(3):
        found = record(path := tmp_path / f"small_1_{i}.wav")
        assert found["sure"] == 0.3
        assert found["probability"] >= 0.3 or found["drawn"] == 8
        (take,) = model.generate_each(samples=1600, seed=1, first=found["index"])
        np.testing.assert_allclose(audio.read(path, RATE), take.waveform, atol=1e-4)  # 16 bits


def test_a_model_may_ask_for_words(run: Run, asking: Path, tmp_path: Path) -> None:
    assert run("-m", asking, *SHORT)[0] == 0
    found = record(tmp_path / "asking_1_0.wav")
    assert (found["sure"], found["drawn"]) == (0.9999, 8)
    for free in (
        (*SHORT, "--sure", 0),
        ("--seconds", 1.5),
        ("--seconds", 0.05),
        (*SHORT, "--prompt", tmp_path / "asking_1_0.wav"),
    ):
        assert run("-m", asking, "--overwrite", *free)[0] == 0
        found = record(tmp_path / "asking_1_0.wav")
        assert not {"word", "sure"} & set(found)


def test_where_no_word_can_be_heard_sure_is_refused(run: Run, tmp_path: Path) -> None:
    assert run(*SHORT)[0] == 0
    wav = tmp_path / "small_1_0.wav"
    for arguments, why in (
        (("--seconds", 2), "is for takes of 0.1 to 1 s, and --seconds is 2"),
        ((*SHORT, "--prompt", wav), "does not go with --prompt"),
        ((*SHORT, "--stream"), "does not go with --output-dir, --sure"),
        ((*SHORT, "--sure", 1.5), "not in the range 0<=x<=1"),
    ):
        code, _, err = run("--sure", 0.5, *arguments)
        assert code == 2
        assert why in err
