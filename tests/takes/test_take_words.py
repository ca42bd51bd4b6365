"""`audiomamba generate --sure`: takes in which a classifier hears a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import audiomamba
from audiomamba import audio, checkpoint
from audiomamba.config import Words
from audiomamba.files import sha256
from tests.takes.records import RATE, Run, record

SHORT = ("--seconds", 0.1)


@pytest.fixture
def asking(small: Path, tmp_path: Path) -> Path:
    """Return a model that asks for words which none of its takes holds so clearly."""
    folder = tmp_path / "asking"
    model = audiomamba.load(small)
    model.words = Words(classifier="digit_classifier", sure=0.9999)
    model.save(folder)
    return folder


def made(folder: Path) -> list[Path]:
    return sorted(folder.glob("asking_1_*.wav"), key=lambda path: int(path.stem.split("_")[-1]))


def test_takes_without_a_clear_word_are_told(run: Run, asking: Path, tmp_path: Path) -> None:
    code, out, err = run("-m", asking, *SHORT, "-n", 2)
    assert code == 0
    lines = err.splitlines()
    assert len(lines) == 2
    for i, (line, path) in enumerate(zip(lines, made(tmp_path), strict=True)):
        found = record(path)
        assert (found["drawn"], found["sure"]) == (8, 0.9999)
        assert 8 * i <= found["index"] < 8 * (i + 1)
        assert path.stem == f"asking_1_{found['index']}"
        assert line == (
            f"warning: {path.name} is the clearest of 8, and digit_classifier is not 0.9999 sure "
            f"of it: {found['word']}, {found['probability']:.3f}"
        )
    assert "0.2 s of audio of 1.6 s drawn in" in out


def test_a_take_is_made_again_by_its_index(run: Run, asking: Path, tmp_path: Path) -> None:
    assert run("-m", asking, *SHORT, "-n", 3, "--sure", 0.3, "--quiet", "--save-state")[0] == 0
    model = audiomamba.load(asking)
    weights = sha256(checkpoint.find("digit_classifier", "classifier") / checkpoint.WEIGHTS)
    assert len(made(tmp_path)) == 3
    for path in made(tmp_path):
        found = record(path)
        assert (found["classifier"], found["sure"]) == ("digit_classifier", 0.3)
        assert found["classifier_sha256"] == weights
        assert found["probability"] >= 0.3 or found["drawn"] == 8
        (take,) = model.generate_each(samples=1600, seed=1, first=found["index"])
        np.testing.assert_allclose(audio.read(path, RATE), take.waveform, atol=1e-4)  # 16 bits
    # What goes on has the name of what it goes on from, and is not chosen.
    code, out, err = run("-m", asking, *SHORT, "--resume", path.with_suffix(".safetensors"))
    assert (code, "what this makes is not chosen" in err) == (0, True)
    assert f"{path.stem}_from_1600.wav" in out


def test_the_likeliest_of_clear_takes_are_kept(run: Run, asking: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = ("--sure", 0.3, "-n", 3, "--keep", 1, "--gallery", page)
    assert run("-m", asking, *SHORT, *asked)[0] == 0
    (path,) = made(tmp_path)
    found = record(path)
    assert (found["rank"], found["ranked"]) == (1, 3)
    assert f"{found['word']}, {found['probability']:.3f}" in page.read_text()


def test_only_chosen_takes_are_told_to_run_away(run: Run, asking: Path, tmp_path: Path) -> None:
    path = asking / "config.json"
    values = json.loads(path.read_text())
    values["training"] = {"validation_bits_per_sample": 1.0}  # all of it is noise to the guard
    path.write_text(json.dumps(values))
    code, _, err = run("-m", asking, "--seconds", 1, "--guard")
    assert code == 0
    (take,) = made(tmp_path)
    assert err.count("runs into noise") == 1
    assert f"{take.name} runs into noise" in err


def test_what_is_too_long_or_goes_on_is_not_chosen(run: Run, asking: Path, tmp_path: Path) -> None:
    assert run("-m", asking, *SHORT)[0] == 0
    wav = made(tmp_path)[0]
    note = (
        f"{asking} asks for clear words, of 0.1 to 1 s from silence; what this makes is not "
        "chosen\n"
    )
    for free, told in (
        ((*SHORT, "--sure", 0), ""),
        (("--seconds", 1.5), note),
        (("--seconds", 0.05), note),
        ((*SHORT, "--prompt", wav), note),
    ):
        code, _, err = run("-m", asking, "--overwrite", *free)
        assert (code, err) == (0, told)
        assert not {"word", "sure"} & set(record(tmp_path / "asking_1_0.wav"))


def test_where_no_word_can_be_heard_sure_is_refused(run: Run, asking: Path, tmp_path: Path) -> None:
    assert run(*SHORT, "--save-state")[0] == 0
    wav = tmp_path / "small_1_0.wav"
    for arguments, code, why in (
        (("--seconds", 2, "-m", asking), 2, "is for takes of 0.1 to 1 s, and --seconds is 2"),
        ((*SHORT, "--prompt", wav), 2, "does not go with --prompt"),
        ((*SHORT, "--resume", wav.with_suffix(".safetensors")), 2, "does not go with --resume"),
        ((*SHORT, "--stream"), 2, "does not go with --output-dir, --sure"),
        ((*SHORT, "--sure", 1.5), 2, "not in the range 0<=x<=1"),
        ((*SHORT, "--overwrite"), 1, "small names no classifier of words"),
    ):
        got, _, err = run("--sure", 0.5, *arguments)
        assert (got, why in err) == (code, True), err
