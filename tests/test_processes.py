"""Training in several processes: the same as in one, and they begin, stop and go on together."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiomamba import audio, checkpoint
from audiomamba.data.prepare import prepare
from audiomamba.tokenizer import Tokenizer
from audiomamba.train_folder import LAST

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of which most are shorter than a row, and what comes of training on them."""
    place = tmp_path_factory.mktemp("processes")
    random = np.random.default_rng(0)
    for split, lengths in {"train": (700, 100, 70, 90), "validation": (301, 150)}.items():
        (place / "wave" / split).mkdir(parents=True)
        for i, samples in enumerate(lengths):
            wave = np.cumsum(random.normal(0, 0.05, samples)).clip(-1, 1).astype(np.float32)
            audio.write(place / "wave" / split / f"{i}.wav", wave, 16000)
    prepare(place / "wave", place / "data", Tokenizer(), sample_rate=16000)
    return place


@pytest.fixture(scope="module")
def said(folder: Path) -> Any:
    """What the processes of each run said."""
    program = Path(__file__).with_name("processes.py")
    root = program.parent.parent
    paths = [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, program, folder / "data", folder],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def logged(out: Path, name: str) -> list[float]:
    """Return a column of a run's only table."""
    (table,) = out.rglob("metrics.csv")
    with table.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_two_processes_train_as_one_with_both_their_batches(folder: Path, said: Any) -> None:
    """Rounding apart: sums are taken in another order."""
    assert [one.get("step") for one in said["two"] + said["one"]] == [4, 4, 4], said["stderr"]
    assert [one["rank"] for one in said["two"]] == [0, 1]
    assert [one["processes"] for one in said["two"] + said["one"]] == [2, 2, 1]
    assert [one["counted"] for one in said["two"] + said["one"]] == [2, 2, 1]  # before they trained
    for name in ("train/bits_per_sample", "train/gradient_norm"):
        two, one = (logged(folder / run, name) for run in ("two", "one"))
        assert len(two) == 4
        assert two == pytest.approx(one, rel=1e-4)
    about = [json.loads((folder / run / checkpoint.CONFIG).read_text()) for run in ("two", "one")]
    samples = [one["training"]["samples"] for one in about]
    assert samples[0] == samples[1] < 4 * 4 * 512  # no padding
    weights = [checkpoint.load(folder / run).state_dict() for run in ("two", "one")]
    for name, value in weights[0].items():
        # Adam divides a gradient by its size, and so what of a tiny one is rounding.
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)


def test_a_replayed_step_takes_part_in_the_reduction(folder: Path, said: Any) -> None:
    """What CUDA graphs do to gradients and to weights without one, done without CUDA."""
    assert [one.get("step") for one in said["graph"]] == [4, 4], said["stderr"]
    for name, of in (("train/bits_per_sample", statistics.mean), ("train/gradient_norm", max)):
        two, graph = (logged(folder / run, name) for run in ("two", "graph"))
        assert graph == pytest.approx([of(two[:3]), two[3]], rel=1e-5)  # the last is a rest
    two, graph = (
        json.loads((folder / run / checkpoint.CONFIG).read_text()) for run in ("two", "graph")
    )
    assert graph["training"]["samples"] == two["training"]["samples"]


def test_a_signal_to_one_process_stops_all_with_a_checkpoint_to_go_on_from(
    folder: Path, said: Any
) -> None:
    stopped = said["stopped"]
    assert [one["stopped"] for one in stopped] == ["SIGTERM", "SIGTERM"], said["stderr"]
    step = stopped[0]["step"]
    assert [one["step"] for one in stopped] == [step, step]
    resumed = said["resumed"]
    assert [(one["step"], one["stopped"]) for one in resumed] == 2 * [(step + 2, None)]
    last = torch.load(folder / "long" / LAST, weights_only=True)
    assert last["global_step"] == step + 2
    logs = sorted(path.parent.name for path in (folder / "long").rglob("metrics.csv"))
    assert logs == ["version_0", "version_1"]
    assert not list(folder.rglob("*.part"))


def test_processes_with_folders_of_their_own_do_not_wait_for_ever(folder: Path, said: Any) -> None:
    step = said["resumed"][0]["step"]
    error = (
        f"ValueError: process 1 has in its {LAST} step None, and process 0 has {step}; all need "
        "the same flags, and folders (--data, --out) that all machines share"
    )
    assert [one["error"] for one in said["apart"]] == [error, error]
