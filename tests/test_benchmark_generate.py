"""The benchmark of generation runs whole, tiny, on a CPU."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent


def test_memory_is_measured_as_a_stream_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--seconds", "0.01", "0.1", "--streams", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["memory.py", *options])
    runpy.run_path(str(ROOT / "benchmarks" / "memory.py"), run_name="__main__")
    (path,) = tmp_path.glob("memory_piano_*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["seconds"] for row in rows] == [0.01, 0.1]
    assert all(abs(row["bytes_per_stream"]) < 2**30 for row in rows)


@pytest.mark.slow
def test_a_smoke_run_measures_every_engine(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "benchmarks/generate.py", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("generate_*.json")
    record = json.loads(path.read_text())
    assert not record["errors"]
    assert {row["engine"] for row in record["rows"]} == {"triton", "torch", "numba"}
    kernel = [row for row in record["rows"] if row["part"] == "kernel"]
    assert {(row["weights"], row["streams"]) for row in kernel} == {
        (weights, streams) for weights in ("float32", "bfloat16") for streams in (1, 2)
    }
    assert path.with_suffix(".png").stat().st_size > 1000
