"""Noise, silence and a held tone are told from music; the measures are those of librosa."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiomamba import audio
from audiomamba.data.prepare import prepare
from audiomamba.drift import FRAME, HOP, LIMITS_OF, Fault, Limits, faults, measure

RATE = 16000
FOLDER = Path(__file__).parent.parent / "benchmarks"


def white(seconds: float, level: float = -20.0) -> np.ndarray:
    random = np.random.default_rng(0)
    return 10 ** (level / 20) * random.standard_normal(round(seconds * RATE))


def sine(seconds: float, hz: float = 830.0, amplitude: float = 0.1) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def notes(seconds: int) -> np.ndarray:
    """A note a second, of another pitch than the one before, with partials that die away."""
    random, t = np.random.default_rng(1), np.arange(RATE) / RATE
    played = []
    for i in range(seconds):
        hz = 220 * 2 ** ((i * 5 % 12) / 12)
        partials = [np.sin(2 * np.pi * hz * k * t) * np.exp(-2 * k * t) / k for k in range(1, 9)]
        played.append(0.1 * np.sum(partials, axis=0))
    return np.concatenate(played) + 1e-4 * random.standard_normal(seconds * RATE)


@pytest.mark.parametrize("kind", ["notes", "white", "sine"])
def test_flatness_is_that_of_librosa(kind: str) -> None:
    librosa = pytest.importorskip("librosa")
    wave = {"notes": notes(3), "white": white(3), "sine": sine(3)}[kind].astype(np.float32)
    ours = measure(wave, RATE).flatness
    for i, flatness in enumerate(ours):
        theirs = librosa.feature.spectral_flatness(
            y=wave[i * RATE : (i + 1) * RATE].astype(np.float64),
            n_fft=FRAME,
            hop_length=HOP,
            center=False,
        )
        assert flatness == pytest.approx(theirs.mean(), rel=1e-6)


def test_white_noise_is_as_flat_as_its_theory() -> None:
    # A bin's power is exponential: its logarithm's mean is lower by Euler's constant. 1000 bins of
    # 28 overlapping frames a window leave a standard error near half a percent.
    curves = measure(white(20), RATE)
    assert curves.flatness.mean() == pytest.approx(np.exp(-np.euler_gamma), rel=0.01)
    assert curves.level == pytest.approx(-20, abs=0.2)


@settings(max_examples=25, deadline=None)
@given(
    hz=st.floats(50, 7900),
    amplitude=st.floats(0.003, 1),
    rate=st.sampled_from([1000, 16000, 22050, 44100]),
)
def test_a_sine_is_found_where_it_is(hz: float, amplitude: float, rate: int) -> None:
    hz *= rate / 16000
    wave = amplitude * np.sin(2 * np.pi * hz * np.arange(10 * max(rate, FRAME)) / rate)
    curves = measure(wave.astype(np.float32), rate)
    assert np.abs(curves.tone - hz).max() <= curves.bin
    assert curves.share.min() > 0.99
    assert curves.level == pytest.approx(20 * np.log10(amplitude) - 3.01, abs=0.1)
    (fault,) = faults(curves)
    assert fault == ("tone", 0, pytest.approx(10 * curves.window))


@settings(max_examples=10, deadline=None)
@given(gain=st.floats(0.1, 1))
def test_only_the_level_hears_a_gain(gain: float) -> None:
    wave = notes(2)
    a, b = measure(wave, RATE), measure(gain * wave, RATE)
    assert b.level == pytest.approx(a.level + 20 * np.log10(gain), abs=1e-6)
    assert b.share == pytest.approx(a.share, rel=1e-6)
    assert (b.tone == a.tone).all()


def test_music_has_no_faults() -> None:
    assert faults(measure(notes(40), RATE)) == []


@pytest.mark.parametrize(
    ("wave", "fault"),
    [
        (white(10), Fault("noise", 5, 15)),
        (np.zeros(10 * RATE), Fault("silence", 5, 15)),
        (sine(10), Fault("tone", 5, 15)),
        (np.full(10 * RATE, 0.3), Fault("tone", 5, 15)),  # stuck at one level
    ],
)
def test_a_fault_has_its_start_and_its_end(wave: np.ndarray, fault: Fault) -> None:
    for after in (0, 4):
        whole = np.concatenate([notes(5), wave, notes(after)] if after else [notes(5), wave])
        assert faults(measure(whole, RATE)) == [fault]


def test_short_stretches_and_soft_hiss_are_let_pass() -> None:
    for wave in (white(2), np.zeros(4 * RATE), sine(7), white(20, -50.0)):
        assert faults(measure(np.concatenate([notes(5), wave]), RATE)) == []


def test_a_tone_that_moves_is_no_held_tone() -> None:
    def tones(*pitches: float) -> list[Fault]:
        return faults(measure(np.concatenate([sine(5, hz) for hz in pitches]), RATE))

    assert tones(400, 500, 400) == []
    assert tones(400, 400, 500) == [("tone", 0, 10)]
    assert tones(500, 400, 400) == [("tone", 5, 15)]


def test_limits_can_be_given() -> None:
    curves = measure(sine(5), RATE)
    assert faults(curves) == []
    assert faults(curves, Limits(tone_seconds=5)) == [("tone", 0, 5)]


def test_silence_has_no_flatness() -> None:
    curves = measure(np.zeros(RATE, np.float32), RATE)
    assert (curves.level[0], curves.share[0]) == (-120, 0)
    assert np.isnan(curves.flatness[0])
    # A note after a pause is as flat as the note, not as the pause.
    late = np.concatenate([np.zeros(RATE // 2), sine(0.5)])
    assert measure(late, RATE).flatness[0] < 0.01


def test_tensors_are_taken_and_what_is_left_over_is_not_measured() -> None:
    wave = notes(2).astype(np.float32)
    a = measure(wave, RATE)
    b = measure(torch.from_numpy(np.append(wave, np.ones(100, np.float32))), RATE)
    for name in ("level", "flatness", "tone", "share"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_memory_does_not_grow_with_length() -> None:
    def peak(seconds: int) -> int:
        wave = np.zeros(seconds * RATE, np.float32)
        tracemalloc.start()
        measure(wave, RATE)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(60) < peak(2) + 200_000  # a minute is 3.8 MB


@pytest.mark.parametrize(
    ("wave", "rate", "words"),
    [
        (np.zeros((2, RATE)), RATE, "floating point"),
        (np.zeros(RATE, np.int16), RATE, "int16"),
        (np.zeros(RATE - 1), RATE, "a window needs 16000"),
        (np.full(RATE, np.nan), RATE, "NaN"),
        (np.zeros(RATE), 0, "sample_rate is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(wave: np.ndarray, rate: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measure(wave, rate)


@pytest.fixture
def benchmark() -> ModuleType:
    """benchmarks/drift.py as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_drift", FOLDER / "drift.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_benchmark_runs_tiny(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "audio" / "test").mkdir(parents=True)
    audio.write(tmp_path / "audio" / "test" / "a.wav", notes(6).astype(np.float32), RATE)
    prepare(tmp_path / "audio", tmp_path / "tokens")
    data, out = str(tmp_path / "tokens"), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["drift.py", "--smoke", "--data", data, "--out", str(out)])
    benchmark.main()
    assert sorted(path.name for path in out.iterdir()) == ["drift_smoke.json", "drift_smoke.png"]
    record = json.loads((out / "drift_smoke.json").read_text())
    assert record["recordings"]["windows"] == 6
    assert record["recordings"]["faults"] == []
    (row,) = record["generated"]
    assert len(row["level"]) == len(row["flatness"]) == 2
    # A random network is white noise, two seconds of which are no fault yet.
    assert row["flatness"] == pytest.approx([0.56, 0.56], abs=0.02)
    assert row["faults"] == []


def test_the_shipped_model_s_record_is_of_these_limits() -> None:
    record = json.loads((FOLDER / "results" / "drift_piano.json").read_text())
    assert record["limits"] == dataclasses.asdict(LIMITS_OF["piano"])
    assert [fault["kind"] for fault in record["recordings"]["faults"]] == []
    assert record["recordings"]["percentiles"]["flatness"]["100"] < Limits().noise_flatness
