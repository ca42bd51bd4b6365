"""Files that hold no usable audio, and a preparation that fails."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiomamba.data.prepare import prepare
from audiomamba.tokenizer import Tokenizer


def break_file(path: Path, how: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "empty":
        soundfile.write(path, np.zeros(0), 16000)
    elif how == "text":
        path.write_text("no audio")
    elif how == "nan":
        soundfile.write(path, np.full(70_000, np.nan), 16000, subtype="FLOAT")
    elif how == "damaged":
        good = path.with_suffix(".flac")
        soundfile.write(good, np.random.default_rng(0).uniform(-1, 1, 200_000), 16000)
        path.write_bytes(good.read_bytes()[:200_000])
        good.unlink()
    elif how == "cut":
        soundfile.write(path, np.zeros(999), 16000)
        path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("how", ["empty", "text", "nan", "damaged", "cut"])
def test_a_bad_file_is_named_and_nothing_is_left(music: Path, how: str) -> None:
    break_file(music / "train/bad.wav", how)
    out = music.parent / "out"
    with pytest.raises(ValueError, match=r"train/bad\.wav (is|holds) "):
        prepare(music, out)
    assert not list(out.iterdir())


@pytest.mark.parametrize("how", ["empty", "text", "nan", "damaged", "cut"])
@pytest.mark.parametrize("bits", [8, 12])
def test_bad_files_can_be_skipped(music: Path, how: str, bits: int) -> None:
    tokenizer = Tokenizer(bits=bits)
    good = prepare(music, music.parent / "good", tokenizer)
    break_file(music / "train/bad.wav", how)
    store = prepare(music, music.parent / "out", tokenizer, skip_bad=True)
    assert store.files() == good.files()
    for file in store.files():
        assert np.array_equal(store.clip(file), good.clip(file))
    assert list(store.skipped) == ["train/bad.wav"]
    assert "bad.wav" in store.skipped["train/bad.wav"]


def test_a_file_usable_at_one_speed_is_taken_at_that_one_and_hashed_once(
    music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["audiomamba.data.prepare"]
    read, hashed = module._waveform, []

    def waveform(path: Path, tokenizer: Tokenizer, rate: int, speed: float) -> Any:
        if path.name == "b9.flac" and speed == 2.0:
            raise module.UnusableAudioError(f"{path} is too short")
        return read(path, tokenizer, rate, speed)

    def sha256(path: Path) -> str:
        hashed.append(path.name)
        return "0" * 64

    monkeypatch.setattr(module, "_waveform", waveform)
    monkeypatch.setattr(module, "sha256", sha256)
    break_file(music / "train/bad.wav", "text")
    store = prepare(music, music.parent / "out", speeds=(2.0, 1.0), skip_bad=True)
    assert [file.speed for file in store.files("train") if file.path == "train/b9.flac"] == [1.0]
    assert list(store.skipped) == ["train/bad.wav"]
    assert sorted(hashed) == sorted({Path(file.path).name for file in store.files()})


def test_nothing_but_bad_files_is_an_error(tmp_path: Path) -> None:
    break_file(tmp_path / "music/train/a.wav", "text")
    with pytest.raises(ValueError, match="none of the 1 audio files"):
        prepare(tmp_path / "music", tmp_path / "out", skip_bad=True)


def test_a_failed_overwrite_keeps_what_was_there(music: Path) -> None:
    out = music.parent / "out"
    prepare(music, out)
    before = [path.read_bytes() for path in sorted(out.iterdir())]
    break_file(music / "train/bad.wav", "text")
    with pytest.raises(ValueError, match=r"bad\.wav"):
        prepare(music, out, overwrite=True)
    assert [path.read_bytes() for path in sorted(out.iterdir())] == before


def test_a_full_disk_is_never_skipped(music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def encode(self: Tokenizer, waveform: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return waveform.astype(np.uint8)

    monkeypatch.setattr(Tokenizer, "encode", encode)
    with pytest.raises(OSError, match=r"No space left on device: .*out/tokens\.bin'$"):
        prepare(music, music.parent / "out", skip_bad=True)
    assert not list((music.parent / "out").iterdir())


def test_progress_counts_every_file(music: Path) -> None:
    steps: list[tuple[int, int]] = []
    break_file(music / "train/bad.wav", "text")
    prepare(
        music,
        music.parent / "out",
        skip_bad=True,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(i, 6) for i in range(1, 7)]
