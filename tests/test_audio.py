from __future__ import annotations

import errno
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiomamba import audio
from audiomamba.files import replacing


def sine(seconds: float, sample_rate: int = 16000, hz: float = 440.0) -> np.ndarray:
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


@pytest.mark.parametrize(
    ("format", "tolerance"), [("wav", 1 / 32768), ("flac", 1 / 32768), ("ogg", 0.03), ("mp3", 0.03)]
)
def test_what_is_written_is_read(tmp_path: Path, format: audio.Format, tolerance: float) -> None:
    waveform = sine(1.01)
    audio.write(tmp_path / "a", waveform, 16000, format=format)
    audio.write(tmp_path / f"a.{format}", waveform, 16000)
    assert (tmp_path / "a").read_bytes()[:4] == (tmp_path / f"a.{format}").read_bytes()[:4]
    back = audio.read(tmp_path / "a", 16000)
    assert back.dtype == np.float32
    assert back.shape == waveform.shape
    assert np.abs(back - waveform)[1000:-1000].max() <= tolerance
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a", f"a.{format}"]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_wav_takes_every_usual_sample_format(tmp_path: Path, subtype: str) -> None:
    audio.write(tmp_path / "a.wav", sine(0.1), 8000, subtype=subtype)
    assert soundfile.info(tmp_path / "a.wav").subtype == subtype
    assert np.abs(audio.read(tmp_path / "a.wav", 8000) - sine(0.1)).max() < 0.02


def test_a_long_wav_becomes_rf64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_WAV_LIMIT_BYTES", 3000)
    audio.write(tmp_path / "short.wav", sine(0.09), 16000)
    audio.write(tmp_path / "long.wav", sine(0.1), 16000)
    assert soundfile.info(tmp_path / "short.wav").format == "WAV"
    assert soundfile.info(tmp_path / "long.wav").format == "RF64"
    assert len(audio.read(tmp_path / "long.wav", 16000)) == 1600


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    data = np.random.default_rng(0).uniform(-1, 1, (70_001, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", data, 16000, subtype="FLOAT")
    np.testing.assert_allclose(
        audio.read(tmp_path / "a.wav", 16000), data.mean(axis=1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_any_rate_is_resampled(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", sine(2.003, rate), rate, subtype="FLOAT")
    waveform = audio.read(tmp_path / "a.wav", 16000)
    expected = sine(2.003)
    assert abs(len(waveform) - len(expected)) <= 1
    inside = slice(200, len(waveform) - 200)
    assert np.abs(waveform[inside] - expected[: len(waveform)][inside]).max() < 1e-4


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("seconds", [0.0001, 0.5, 3.99, 9.0])
def test_the_first_seconds_are_a_prefix_of_the_whole(
    tmp_path: Path, rate: int, seconds: float
) -> None:
    soundfile.write(tmp_path / "a.flac", sine(7.0, rate), rate)
    whole = audio.read(tmp_path / "a.flac", 16000)
    part = audio.read(tmp_path / "a.flac", 16000, seconds=seconds)
    assert len(part) == min(len(whole), round(seconds * 16000))
    assert np.array_equal(part, whole[: len(part)])


def test_reading_can_begin_anywhere(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", sine(2.0), 16000)
    whole = audio.read(tmp_path / "a.wav", 16000)
    part = audio.read(tmp_path / "a.wav", 16000, start_seconds=0.75, seconds=0.5)
    assert np.array_equal(part, whole[12000:20000])


def test_the_first_seconds_of_a_huge_file_need_little_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge.wav"
    soundfile.write(path, np.zeros(10), 16000)
    size = 2**31
    with open(path, "r+b") as file:  # sparse: 2 GB that take no room
        file.seek(4)
        file.write(struct.pack("<I", size - 8))
        file.seek(40)
        file.write(struct.pack("<I", size - 44))
        file.truncate(size)
    read: list[int] = []
    original = soundfile.SoundFile.read

    def counting(self: Any, frames: int = -1, **options: Any) -> Any:
        read.append(frames)
        return original(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    assert len(audio.read(path, 16000, seconds=2.5)) == 40_000
    assert sum(read) <= 1 << 16
    assert len(audio.read(path, 16000, start_seconds=60_000, seconds=1)) == 16_000


def test_blocks_are_small_and_make_up_the_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sine(20.0, 44100), 44100)
    pieces = list(audio.blocks(tmp_path / "a.wav", 16000))
    assert max(map(len, pieces)) < 1 << 16
    assert np.array_equal(np.concatenate(pieces), audio.read(tmp_path / "a.wav", 16000))


def test_silence_is_audio(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", np.zeros(100, np.float32), 16000)
    assert np.array_equal(audio.read(tmp_path / "a.wav", 16000), np.zeros(100))


def test_peaks_just_over_full_scale_are_clipped(tmp_path: Path) -> None:
    data = np.array([0.5, 1.2, -1.9, 0.0], np.float32)
    soundfile.write(tmp_path / "a.wav", data, 16000, subtype="FLOAT")
    assert audio.read(tmp_path / "a.wav", 16000).tolist() == [0.5, 1.0, -1.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_file_with_no_number_is_refused(tmp_path: Path, value: float) -> None:
    data = np.zeros(100_000, np.float32)
    data[90_000] = value
    soundfile.write(tmp_path / "a.wav", data, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav holds a sample that is NaN or infinite"):
        audio.read(tmp_path / "a.wav", 8000)


def test_a_file_that_is_not_scaled_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(9, 20_000.0), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav peaks at 20000; scale"):
        audio.read(tmp_path / "a.wav", 16000)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.wav"):
        audio.read(tmp_path / "nothing.wav", 16000)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no audio at all " * 99, b"\0" * 999])
@pytest.mark.parametrize("suffix", ["wav", "mp3", "raw"])
def test_a_file_that_is_not_audio_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.{suffix} is (not audio|empty)"):
        audio.read(path, 16000)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        audio.read(tmp_path, 16000)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"a\.wav is empty"):
        audio.read(tmp_path / "a.wav", 16000)


def test_a_file_too_short_for_one_sample_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1), 96000)
    with pytest.raises(ValueError, match=r"a\.wav is too short: no sample .* at 8000 Hz"):
        audio.read(tmp_path / "a.wav", 8000)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 200_000), 16000)
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(ValueError, match=r"a\.flac is (damaged|cut short): "):
        audio.read(path, 16000)
    assert len(audio.read(path, 16000, seconds=1)) == 16000


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "FLOAT", "ULAW"])
@pytest.mark.parametrize("samples", [1000, 1001])
def test_a_wav_that_is_cut_short_is_refused(
    tmp_path: Path, format: str, subtype: str, samples: int
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1)[:samples], 16000, subtype=subtype, format=format)
    assert len(audio.read(path, 16000)) == samples
    whole = path.read_bytes()
    for missing in (2, samples // 2):  # 1 may be padding
        path.write_bytes(whole[:-missing])
        with pytest.raises(ValueError, match=r"a\.wav is cut short: \d+ of \d+ bytes are there"):
            audio.read(path, 16000, seconds=0.01)
        with pytest.raises(ValueError, match="is cut short"):
            audio.check(path)


@pytest.mark.parametrize("size", [0, 0x7FFF0000, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_of_a_stream_need_not_know_its_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(0.1), 16000)
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", size)
    data[4:8] = struct.pack("<I", min(size + 36, 0xFFFFFFFF) if size else 8)
    path.write_bytes(data)
    assert len(audio.read(path, 16000)) == 1600


def test_chunks_before_and_after_the_samples_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(0.1), 16000)
    data = path.read_bytes()
    extra = b"LIST" + struct.pack("<I", 5) + b"INFO.\0"
    path.write_bytes(data[:36] + extra + data[36:] + extra)
    assert len(audio.read(path, 16000)) == 1600
    path.write_bytes(data[:36] + extra + data[36:-2])
    with pytest.raises(ValueError, match="cut short: 3198 of 3200 bytes"):
        audio.read(path, 16000)


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_a_rate_that_no_recording_has_is_refused(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", sine(0.1), rate)
    with pytest.raises(ValueError, match=rf"a\.wav says its sample rate is {rate} Hz"):
        audio.read(tmp_path / "a.wav", 16000)


def test_a_range_outside_the_file_is_refused(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", sine(1.5), 16000)
    with pytest.raises(ValueError, match=r"lasts 1\.5 s; nothing to read from 1\.5 s on"):
        audio.read(tmp_path / "a.wav", 16000, start_seconds=1.5)
    for start_seconds in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"start_seconds is {start_seconds}"):
            audio.read(tmp_path / "a.wav", 16000, start_seconds=start_seconds)
    for seconds in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"seconds is {seconds}"):
            audio.read(tmp_path / "a.wav", 16000, seconds=seconds)
    with pytest.raises(ValueError, match="sample_rate is 0"):
        audio.read(tmp_path / "a.wav", 0)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0), r"shape \(0,\)"),
        (np.zeros((2, 9)), r"shape \(2, 9\)"),
        (np.array([0.0, 1.5]), r"peaks at 1\.5"),
        (np.array([0.0, math.nan]), r"peaks at nan"),
    ],
)
def test_a_waveform_that_is_no_audio_is_not_written(
    tmp_path: Path, waveform: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        audio.write(tmp_path / "a.wav", waveform, 16000)
    assert not list(tmp_path.iterdir())


def test_a_format_that_cannot_hold_the_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'aac' is no audio format; choose one of wav, flac"):
        audio.write(tmp_path / "a.aac", sine(0.1), 16000)
    with pytest.raises(ValueError, match="MP3 cannot hold MPEG_LAYER_III at 17 Hz"):
        audio.write(tmp_path / "a.mp3", sine(0.1), 17)
    with pytest.raises(ValueError, match="FLAC cannot hold ULAW at 16000 Hz"):
        audio.write(tmp_path / "a.flac", sine(0.1), 16000, subtype="ULAW")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio.write(tmp_path / "a.wav", sine(0.1), 16000)
    before = (tmp_path / "a.wav").read_bytes()

    def full(path: Path, data: bytes) -> int:
        with open(path, "wb") as file:
            file.write(bytes(data)[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*/a\.wav'$"):
        audio.write(tmp_path / "a.wav", sine(0.2), 16000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_replacement_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def interrupted() -> None:
        with replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert not list(tmp_path.iterdir())
