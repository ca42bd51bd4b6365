"""Folders of audio become tokens."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from audiomamba import audio
from audiomamba.data import TokenStore
from audiomamba.data.prepare import prepare
from audiomamba.data.tokens import INDEX, TOKENS
from audiomamba.files import part_of
from audiomamba.tokenizer import Encoding, Tokenizer


@pytest.mark.parametrize("bits", [1, 8, 9, 16])
@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_tokens_are_those_of_the_audio(music: Path, encoding: Encoding, bits: int) -> None:
    tokenizer = Tokenizer(encoding, bits)
    store = prepare(music, music.parent / "out", tokenizer, sample_rate=16000)
    assert store.tokenizer == tokenizer
    assert store.sample_rate == 16000
    assert [file.path for file in store.files()] == [
        "test/a.wav",
        "train/b9.flac",
        "train/b10.wav",
        "train/deep/er/c.wav",
        "validation/v.wav",
    ]
    for file in store.files():
        waveform = audio.read(music / file.path, 16000)
        clip = store.clip(file)
        assert clip.dtype == (np.uint8 if bits <= 8 else np.dtype("<u2"))
        assert np.array_equal(clip, tokenizer.encode(waveform))
        assert file.peak == pytest.approx(np.abs(waveform).max(), abs=1e-6)
        assert file.sha256 == hashlib.sha256((music / file.path).read_bytes()).hexdigest()


def test_training_files_are_taken_at_each_speed(music: Path) -> None:
    once = prepare(music, music.parent / "once")
    store = prepare(music, music.parent / "out", speeds=(1.25, 1.0))
    assert [(file.path, file.speed) for file in store.files("train")] == [
        (file.path, speed) for file in once.files("train") for speed in (1.25, 1.0)
    ]
    for split in ("validation", "test"):
        for mine, theirs in zip(store.files(split), once.files(split), strict=True):
            assert mine.speed == 1.0
            assert np.array_equal(store.clip(mine), once.clip(theirs))
    fast, plain = store.files("train")[:2]
    assert np.array_equal(store.clip(plain), once.clip(once.files("train")[0]))
    assert fast.samples == pytest.approx(plain.samples / 1.25, abs=1)
    spectra = [
        np.abs(np.fft.rfft(store.tokenizer.decode(store.clip(file)), n=16000))
        for file in (fast, plain)
    ]
    assert spectra[0].argmax() == pytest.approx(1.25 * spectra[1].argmax(), abs=2)


@pytest.mark.parametrize("speeds", [(), (1.0, 1.0), (0.0,), (float("nan"),), (1.0, 11.0)])
def test_bad_speeds_are_refused_before_any_work(music: Path, speeds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"speeds are \["):
        prepare(music, music.parent / "out", speeds=speeds)
    assert not (music.parent / "out").exists()


def test_the_same_audio_gives_the_same_bytes(music: Path) -> None:
    for out in ("one", "two"):
        prepare(music, music.parent / out)
    for name in ("tokens.bin", "index.json"):
        assert (music.parent / "one" / name).read_bytes() == (
            music.parent / "two" / name
        ).read_bytes()


def test_the_index_can_be_read_without_this_package(music: Path) -> None:
    prepare(music, music.parent / "out")
    index = json.loads((music.parent / "out/index.json").read_text())
    assert index["sample_rate"] == 16000
    assert index["tokenizer"] == {"encoding": "mu-law", "bits": 8}
    assert index["dtype"] == "|u1"
    assert index["split_rule"] == "by folder"
    assert index["totals"]["train"]["files"] == 3
    last = index["files"][-1]
    size = (music.parent / "out/tokens.bin").stat().st_size
    assert last["offset"] + last["samples"] == size
    assert sum(total["samples"] for total in index["totals"].values()) == size


def test_prepared_tokens_are_not_overwritten_unasked(music: Path) -> None:
    out = music.parent / "out"
    prepare(music, out)
    before = (out / "tokens.bin").read_bytes()
    with pytest.raises(FileExistsError, match=r"out already holds prepared tokens.*--overwrite"):
        prepare(music, out, Tokenizer("linear"))
    assert (out / "tokens.bin").read_bytes() == before
    store = prepare(music, out, Tokenizer("linear", 9), overwrite=True)
    assert TokenStore(out).tokenizer == store.tokenizer == Tokenizer("linear", 9)


def test_what_a_killed_prepare_left_is_swept(
    music: Path, killed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = music.parent / "out"
    out.mkdir()
    left = []
    for process in (killed, os.getpid(), os.getppid()):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda process=process: process)
            left += [part_of(out / name) for name in (INDEX, TOKENS)]
    left.append(out / f".{TOKENS}.another.{killed}.part")  # machine
    for path in left:
        path.write_bytes(b"left")
    store = prepare(music, out)
    assert sum(file.samples for file in store.files()) == (out / TOKENS).stat().st_size
    assert {*out.glob(".*")} == {*left[4:]}  # of a process that lives, and of another machine


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no audio; looked for \.aif"):
        prepare(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
