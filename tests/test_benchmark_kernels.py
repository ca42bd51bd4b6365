"""The benchmark of the kernels runs whole, tiny, on a CPU, and keeps what fails."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
PEERS = json.loads((FOLDER / "peers.json").read_text())
PARTS = ("scan", "lti", "conv", "length", "block")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/kernels.py as a module, as far as its main()."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_kernels", FOLDER / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_everything_runs_tiny(
    kernels: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--smoke", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        kernels.main()
    said = capsys.readouterr().out
    (result,) = tmp_path.glob("kernels_*.json")
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2
    record = json.loads(result.read_text())
    assert record["errors"] == {}
    assert record["copy_gb_per_s"] > 0
    assert set(record["versions"]) == {"python", "torch", "audiomamba", "triton"}
    for part in PARTS:
        rows = [row for row in record["rows"] if row["part"] == part]
        assert {row["pass"] for row in rows} >= {"forward"}, part
        assert all(row["ms"] > 0 for row in rows)
    assert all("compiled_ms" in row for row in record["rows"] if row["part"] == "block")
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--table", str(result)])
    kernels.main()
    printed = capsys.readouterr().out
    assert len(re.findall(r"^\| shape ", printed, re.M)) == len(PARTS)
    assert printed.strip() in said


def test_what_fails_is_kept_and_the_rest_goes_on(
    kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(bench: Any, case: dict[str, Any], which: int) -> dict[str, Any]:
        if which == 0:
            raise RuntimeError("no such kernel")
        return {"ms": 2.0, "graph_ms": 1.0, "peer_ms": 6.0, "moved": 10**6}

    monkeypatch.setitem(kernels.PARTS, "lti", fails)
    monkeypatch.setattr(
        sys, "argv", ["kernels.py", "--smoke", "--only", "lti", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as exit:
        kernels.main()
    assert exit.value.code == 1
    (result,) = tmp_path.glob("kernels_*_lti.json")
    record = json.loads(result.read_text())
    for (label, error), name in zip(record["errors"].items(), ("one minute", "S4"), strict=True):
        assert f"lti, {name}" in label
        assert error == "RuntimeError: no such kernel"
    row, _ = record["rows"]
    assert row["pass"] == "forward+backward"
    assert row["ratio"] == 3.0
    assert row["gb_per_s"] == pytest.approx(1.0)
    assert row["share_of_floor"] == pytest.approx(1 / record["copy_gb_per_s"])


def test_another_device_is_not_compared_with_recorded_figures(kernels: ModuleType) -> None:
    bench = kernels.Bench(smoke=True)
    bench.record["copy_gb_per_s"] = 1.0
    for device in ("another", PEERS["device"]):
        bench.record["device"] = device
        bench.add("scan", PEERS["scan"][0], 0, {"ms": 1.0})
    other, same = bench.record["rows"]
    assert "peer_ms" not in other
    assert "ratio" not in other
    assert same["ratio"] == same["peer_ms"] == 9.29
    assert other["target_ms"] == same["target_ms"] == 1.3


@pytest.mark.parametrize("part", ["scan", "lti", "block"])
def test_recorded_figures_come_in_pairs(part: str) -> None:
    for case in PEERS[part]:
        assert len(case["shape"]) == 3
        for key in case.keys() - {"name", "shape"}:
            assert len(case[key]) == 2, (case["name"], key)
