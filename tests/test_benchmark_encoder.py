"""The benchmark of encoders runs tiny, on a CPU, and says where a model stopped."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "encoder.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", sys.path.copy())  # to which it adds
    spec = importlib.util.spec_from_file_location("benchmark_encoder", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *flags: str
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["encoder.py", "--smoke", "--out", str(out), *flags])
    benchmark.main()
    (path,) = out.glob("*.json")
    assert path.with_suffix(".png").exists()
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_every_model_is_timed(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = run(benchmark, monkeypatch, tmp_path, "--train")
    models = ["mamba", "mamba-causal", "conformer"]
    tried = [(row["model"], row["seconds"]) for row in record["rows"]]
    assert tried == [(model, seconds) for model in models for seconds in (0.5, 1.0)]
    assert all(row["ms"] > 0 for row in record["rows"])
    assert not record["stopped"]
    assert record["train"]


def test_a_model_stops_where_time_or_memory_ends(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = run(benchmark, monkeypatch, tmp_path, "--models", "mamba", "--limit", "1e-9")
    assert [row["seconds"] for row in record["rows"]] == [0.5]
    assert record["stopped"]["mamba"].endswith("for 0.5 s")
    measure = benchmark.measure

    def full(encoder: Any, seconds: float, **options: Any) -> Any:
        if seconds > 0.5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return measure(encoder, seconds, **options)

    monkeypatch.setattr(benchmark, "measure", full)
    record = run(benchmark, monkeypatch, tmp_path, "--models", "mamba")
    assert record["stopped"] == {"mamba": "out of memory at 1 s"}
