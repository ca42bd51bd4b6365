"""The benchmark of runaway noise counts what it is given, and runs whole, tiny, on a CPU."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from audiomamba.drift import Limits
from audiomamba.guard import Guard

PATH = Path(__file__).parent.parent / "benchmarks/runaway.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_runaway", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses looks up names
    spec.loader.exec_module(module)
    return module


def test_settings_are_read(benchmark: ModuleType) -> None:
    parse = benchmark.Setting.parse
    assert parse("0.95") == benchmark.Setting("0.95", 0.95, None, False)
    assert parse("1/0.99+guard") == benchmark.Setting("1/0.99+guard", 1.0, 0.99, True)
    with pytest.raises(argparse.ArgumentTypeError, match="'guard' is no TEMPERATURE"):
        parse("guard")


def test_intervals_are_those_of_wilson(benchmark: ModuleType) -> None:
    scipy = pytest.importorskip("scipy.stats")
    for count, of in ((0, 24), (3, 24), (128, 128)):
        low, high = scipy.binomtest(count, of).proportion_ci(method="wilson")
        found = benchmark.share(count, of)
        assert (found["count"], found["share"]) == (count, round(count / of, 4))
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-4)


def test_a_guard_may_only_tell(benchmark: ModuleType) -> None:
    model = SimpleNamespace(default_guard=lambda: Guard(bits=5.0))
    asked = argparse.Namespace(bits=None, window=None, back=2.0, tries=0)
    assert benchmark.chosen_guard(model, asked) == Guard(bits=5.0, back=2.0, tries=0)


def test_recordings_are_counted_in_pieces_as_long_as_a_run(benchmark: ModuleType) -> None:
    clips = {"long": np.arange(25), "short": np.arange(7), "even": np.arange(20)}
    store = SimpleNamespace(
        sample_rate=10,
        files=lambda: list(clips),
        clip=clips.__getitem__,
        tokenizer=SimpleNamespace(decode=lambda tokens: tokens.astype(np.float32)),
    )
    found = [(int(x[0]), len(x)) for x in benchmark.pieces(store, 1.0)]
    assert found == [(0, 10), (10, 10), (0, 7), (0, 10), (10, 10)]


def test_noise_and_silence_are_counted(benchmark: ModuleType) -> None:
    random, time = np.random.default_rng(0), np.arange(32000) / 16000
    noise = (0.1 * random.standard_normal(32000)).astype(np.float32)
    tone = (0.1 * np.sin(2000 * time)).astype(np.float32)
    half = np.concatenate([tone[:16000], noise[:16000]])
    limits = Limits(noise_seconds=1, silence_seconds=1)
    sounds = [noise, tone, half, 0 * tone, tone[:8000]]
    row = benchmark.count(sounds, 16000, limits, None)
    assert (row["runs"], row["seconds"]) == (5, 8.5)
    assert [row[kind]["count"] for kind in ("noise", "silence", "tone")] == [2, 1, 0]
    assert row["noisy_seconds"] == pytest.approx(3 / 8.5, abs=1e-4)


@pytest.mark.slow
def test_it_runs_tiny(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["runaway.py", "--smoke", "--settings", "1", "1+guard", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    record = json.loads((tmp_path / "runaway_smoke.json").read_text())
    plain, guarded = record["rows"]
    assert (plain["setting"], guarded["setting"]) == ("1", "1+guard")
    assert plain["noise"]["count"] == 0  # two seconds of which are no fault yet
    assert guarded["rewinds"] == 16
    assert plain["unlikely"]["count"] == guarded["unlikely"]["count"] == 2
    assert record["guard"]["bits"] == pytest.approx(1.6 * 4)
