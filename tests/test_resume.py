from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiomamba import audio
from audiomamba.config import ModelConfig
from audiomamba.data import TokenStore
from audiomamba.data.prepare import prepare
from audiomamba.resume import (
    check_processes_agree,
    check_readable,
    check_same_run,
    describe_run,
)
from audiomamba.tokenizer import Tokenizer
from audiomamba.train_config import TrainConfig


def store(folder: Path, seed: int) -> TokenStore:
    (folder / "train").mkdir(parents=True)
    wave = np.random.default_rng(seed).uniform(-1, 1, 100).astype(np.float32)
    audio.write(folder / "train" / "a.wav", wave, 16000)
    prepare(folder, folder / "tokens", Tokenizer(), sample_rate=16000)
    return TokenStore(folder / "tokens")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"gradient_clip": 9.0}, "gradient_clip"),
        ({"warmup": 0.5}, "warmup"),
        ({"batch": 3}, "batch"),
        ({"precision": "32-true"}, "precision"),
    ],
)
def test_another_hyper_parameter_is_named(
    tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    config = TrainConfig()
    data = store(tmp_path, 0)
    then = describe_run(ModelConfig(), config, 1, data)
    same = dataclasses.replace(config, steps=7, out="elsewhere", validate_every=1)
    check_same_run(then, describe_run(ModelConfig(), same, 1, data), "run")
    other = describe_run(ModelConfig(), dataclasses.replace(config, **change), 1, data)
    with pytest.raises(ValueError, match=f"the run in run has {name} "):
        check_same_run(then, other, "run")


def test_other_data_models_and_processes_are_named(tmp_path: Path) -> None:
    a, b = store(tmp_path / "a", 0), store(tmp_path / "b", 1)
    then = describe_run(ModelConfig(), TrainConfig(), 1, a)
    for other, name in (
        (describe_run(ModelConfig(), TrainConfig(), 1, b), "data"),
        (
            describe_run(ModelConfig(d_model=32), TrainConfig(), 1, a),
            "model.d_model 64, and this one has 32",
        ),
        (describe_run(ModelConfig(), TrainConfig(), 2, a), "world_size"),
    ):
        with pytest.raises(ValueError, match=f"the run in run has {name}"):
            check_same_run(then, other, "run")


def test_a_process_that_differs_is_named(tmp_path: Path) -> None:
    a, b = store(tmp_path / "a", 0), store(tmp_path / "b", 1)
    runs = [describe_run(ModelConfig(), TrainConfig(), 3, data) for data in (a, a, b)]
    check_processes_agree(runs[:2])
    with pytest.raises(ValueError, match=r"process 2 has data .* folders .* all machines share"):
        check_processes_agree(runs)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", b"not a checkpoint at all"):
        (tmp_path / "last.ckpt").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or no checkpoint"):
            check_readable(tmp_path / "last.ckpt")
