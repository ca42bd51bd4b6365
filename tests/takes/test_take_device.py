"""Devices that fail, and memory that is too small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiomamba import audio
from audiomamba.engine import launches
from audiomamba.models.waveform import WaveformModel
from tests.takes.records import RATE, Run, record


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            torch.AcceleratorError("CUDA error: unspecified launch failure\nSearch for ..."),
            1,
            "error: the device failed (CUDA error: unspecified launch failure); audiomamba doctor "
            "tells what works here; 2 of 4 files are finished and kept\n",
        ),
        (
            RuntimeError("CUDA error: cuLaunchKernel: out of memory"),
            1,
            "error: the device's memory is full; free some of it, or ask for less at once; 2 of 4 "
            "files are finished and kept\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted: 2 of 4 files are finished and kept\n"),
    ],
    ids=["lost", "full", "interrupted"],
)
def test_a_gpu_that_fails_leaves_what_is_finished(
    run: Run,
    gpu: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    landed, blocks = launches._landed, []

    def failing(*arguments: Any) -> Any:  # where the host waits for the device
        blocks.append(None)
        if len(blocks) == 3:
            raise error
        return landed(*arguments)

    monkeypatch.setattr(launches, "_landed", failing)
    asked = (
        "--seconds",
        0.002,
        "-n",
        4,
        "--batch-size",
        1,
        "--save-state",
        "--rank",
        "--device",
        gpu,
    )
    assert run("--quiet", *asked) == (code, "", line)
    kept = {f"small_1_{i}{end}" for i in (0, 1) for end in (".wav", ".json", ".safetensors")}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert record(tmp_path / "small_1_1.wav")["engine"] == "cuda"


def test_a_disk_that_fills_up_stops_a_gpu(
    run: Run, gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if "_1_1" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    code, out, err = run("--seconds", 0.002, "-n", 4, "--batch-size", 2, "--device", gpu)
    assert (code, out.splitlines()[1:]) == (1, [str(tmp_path / "small_1_0.wav")])
    assert (err.count("\n"), "No space left on device" in err) == (1, True)
    assert {path.name for path in tmp_path.iterdir()} == {"small_1_0.wav", "small_1_0.json"}


def test_what_does_not_fit_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("audiomamba.engine.choice.ThreadedStreams", full)
    for size in ("auto", 5):
        code, _, err = run("--seconds", 0.01, "--batch-size", size)
        assert code == 1
        assert err.startswith("error: not one stream fits into the device's memory; free some")
        assert err.count("\n") == 1


def test_a_prompt_that_does_not_fit_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    audio.write(tmp_path / "before.wav", np.zeros(99, np.float32), RATE)
    monkeypatch.setattr(WaveformModel, "forward", full)
    code, _, err = run("--seconds", 0.01, "--quiet", "--prompt", tmp_path / "before.wav")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: 2 samples of the prompt do not fit into the device's memory;")
