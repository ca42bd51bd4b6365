"""The benchmark of training runs tiny, on a CPU, by the code that trains, and keeps what fails."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from audiomamba.provenance import commit

FOLDER = Path(__file__).parent.parent / "benchmarks"
PEERS = json.loads((FOLDER / "peers.json").read_text())


@pytest.fixture
def benchmark() -> Iterator[ModuleType]:
    """benchmarks/train.py as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_train", FOLDER / "train.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, *flags: str
) -> tuple[int, dict[str, Any]]:
    arguments = ["train.py", "--smoke", "--blocks", "1", "--out", str(out), *flags]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as exit:
        benchmark.main()
    (path,) = out.glob("train_*.json")
    return int(exit.value.code or 0), json.loads(path.read_text())


def test_it_runs_tiny(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, record = run(benchmark, monkeypatch, tmp_path, "--recompute")
    assert (code, record["errors"], record["commit"]) == (0, {}, commit())
    assert set(record["versions"]) == {"python", "torch", "audiomamba", "triton", "lightning"}
    assert [row["activation_checkpointing"] for row in record["rows"]] == [False, True]
    for row in record["rows"]:
        low, high = row["samples_per_s_range"]
        assert 0 < low <= row["samples_per_s"] <= high
        seconds = row["ms_per_step"] / 1e3
        assert seconds * row["samples_per_s"] == pytest.approx(row["batch"] * row["length"])


def test_what_fails_is_kept(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(benchmark, "train", fails)
    code, record = run(benchmark, monkeypatch, tmp_path)
    assert (code, record["rows"]) == (1, [])
    assert record["errors"] == {"tiny, eager": "RuntimeError: out of memory"}


def test_peers_are_compared_with_on_their_device_only(benchmark: ModuleType) -> None:
    assert {known["name"] for known in PEERS["train"]} <= set(benchmark.SETTINGS)
    for device in ("another", PEERS["device"]):
        row = {"setting": "sc09", "samples_per_s": 2.74e6}
        benchmark.compare(row, device)
        assert row["target_samples_per_s"] == 5e6
        assert ("peers" in row) == (device == PEERS["device"])
    assert row["ratio"] == pytest.approx(2.0)
