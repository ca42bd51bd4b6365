from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import audiomamba
from audiomamba import audiomodel, checkpoint
from audiomamba.arguments import check_device
from audiomamba.audiomodel import AudioModel
from audiomamba.config import ModelConfig, Tier
from audiomamba.engine.engine import Engine
from audiomamba.files import sha256
from audiomamba.models.waveform import WaveformModel

TIERS = (Tier(mixer="lti", n_layers=1, d_state=2), Tier(mixer="s6", n_layers=1, d_state=2))


@pytest.fixture(scope="module")
def model() -> AudioModel:
    torch.manual_seed(0)
    config = ModelConfig(sample_rate=100, d_model=8, tiers=TIERS, pools=(4,))
    return AudioModel(WaveformModel(config), name="tiny")


def tone(samples: int) -> np.ndarray:
    return np.sin(np.arange(samples) / 5).astype(np.float32) * 0.5


def test_generate_gives_the_seconds_asked_for(model: AudioModel) -> None:
    wave = model.generate(0.5, num=2)
    assert wave.shape == (2, 50)
    assert wave.dtype == np.float32
    assert np.abs(wave).max() <= 1
    assert np.array_equal(model.generate(samples=50)[0], wave[0])
    assert model.generate().shape == (1, 1000)


def test_generate_begins_with_the_prompt(model: AudioModel) -> None:
    start = tone(13)
    for prompt in (start, torch.from_numpy(start)):
        wave = model.generate(samples=20, prompt=prompt, num=2)
        assert wave.shape == (2, 33)
        assert np.array_equal(wave[:, :13], np.stack([start, start]))
    rest = {
        take.index: take.waveform for take in model.generate_each(samples=20, prompt=start, num=2)
    }
    assert np.array_equal(rest[1], wave[1, 13:])
    assert not np.array_equal(rest[0], model.generate(samples=20)[0])


def test_options_reach_the_sampling(model: AudioModel) -> None:
    plain = model.generate(samples=80, seed=1)
    for options in ({"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.1}, {"seed": 2}):
        assert not np.array_equal(plain, model.generate(samples=80, **{"seed": 1, **options}))  # type: ignore[arg-type]
    greedy = model.generate(samples=80, temperature=0)
    assert np.array_equal(greedy, model.generate(samples=80, temperature=0, seed=5))


def test_generate_each_takes_up_at_any_index(model: AudioModel) -> None:
    whole = model.generate(samples=30, num=4)
    for take in model.generate_each(samples=30, first=2, num=2):
        assert np.array_equal(take.waveform, whole[take.index])


def test_closing_what_generate_each_gives_stops_the_work(
    model: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    held: list[object] = []  # so that counting references closes nothing
    start, generate_streams = Engine.start, audiomodel.generate_streams

    def counted(*args: Any, **kwargs: Any) -> Any:
        begun.append(None)
        return start(*args, **kwargs)

    def kept(*args: Any, **kwargs: Any) -> Any:
        held.append(generate_streams(*args, **kwargs))
        return held[-1]

    monkeypatch.setattr(Engine, "start", counted)
    monkeypatch.setattr(audiomodel, "generate_streams", kept)
    torch.set_num_threads(2)
    before = threading.active_count()
    sounds = model.generate_each(samples=20_000, num=24)
    next(sounds)
    sounds.close()
    assert threading.active_count() == before
    assert 1 <= len(begun) < 24


def test_more_levels_than_there_are_keep_all(model: AudioModel) -> None:
    assert np.array_equal(model.generate(samples=9, top_k=10**20), model.generate(samples=9))


def test_nll_is_the_mean_over_samples_of_a_batch(model: AudioModel) -> None:
    wave = np.stack([tone(50), -tone(50)])
    each = [model.nll(row) for row in wave]
    assert model.nll(wave) == pytest.approx(np.mean(each), rel=1e-6)
    assert model.nll(torch.from_numpy(wave)) == pytest.approx(model.nll(wave))
    assert 4 < each[0] < 12
    assert model.nll(tone(1)) > 0


def test_nll_scores_what_is_generated_as_likelier_than_noise(model: AudioModel) -> None:
    likely = model.generate(samples=400, temperature=0.5)
    noise = np.random.default_rng(0).uniform(-1, 1, 400).astype(np.float32)
    assert model.nll(likely) < model.nll(noise)


def test_a_saved_model_loads_equal(model: AudioModel, tmp_path: Path) -> None:
    model.save(tmp_path / "saved")
    loaded = audiomamba.load(tmp_path / "saved")
    assert loaded.config == model.config
    assert loaded.name == str(tmp_path / "saved")
    assert loaded.weights_sha256 == sha256(tmp_path / "saved" / checkpoint.WEIGHTS)
    assert loaded.device == torch.device("cpu")
    assert loaded.engine == "numba"
    assert loaded.sample_rate == 100
    assert loaded.tokenizer.levels == 256
    assert np.array_equal(loaded.generate(samples=20), model.generate(samples=20))


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e-4, "1"])
def test_a_length_of_no_sample_is_refused(model: AudioModel, seconds: Any) -> None:
    with pytest.raises(ValueError, match="seconds is"):
        model.generate(seconds)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"samples": 10.5}, "samples is 10.5"),
        ({"num": 0}, "num is 0"),
        ({"first": -1}, "first -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"prompt": np.empty(0, np.float32)}, "the prompt is empty"),
        ({"prompt": np.zeros((2, 9), np.float32)}, "must be mono"),
        ({"prompt": np.array([0, np.nan, 0], np.float32)}, "the prompt is NaN .* sample 1"),
        ({"prompt": np.array([0, 2.0])}, "a sample is 2"),
        ({"prompt": np.zeros(9, np.int16)}, "the prompt is int16; .* divided by 32768"),
        ({"prompt": torch.zeros(9, dtype=torch.int32)}, r"the prompt is torch\.int32; .* divided"),
        ({"prompt": []}, r"the prompt is \[\]"),
        ({"prompt": [tone(3)], "num": 2}, "there are 1 prompts; leave it out"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(
    model: AudioModel, options: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        model.generate_each(**{"samples": 5, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "bfloat16", "float8_e5m2", "longdouble", ">f4"]
)
def test_samples_of_any_floating_point_type_are_taken(model: AudioModel, dtype: str) -> None:
    coarse = np.sign(tone(13)) / 2  # that every type holds
    kind = getattr(torch, dtype, None)
    wave: Any = coarse.astype(dtype) if kind is None else torch.from_numpy(coarse).to(kind)
    expected = model.generate(samples=5, prompt=coarse)
    assert np.array_equal(model.generate(samples=5, prompt=wave), expected)
    assert model.nll(wave) == model.nll(coarse)
    features, counts = model.extract_features(wave[None], [9])
    for mine, theirs in zip(
        (*features, *counts),
        (x for part in model.extract_features(coarse[None], torch.tensor([9])) for x in part),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    assert model.extract_features(coarse[None, ::-1])[1][0] == 13


def test_features_of_what_is_no_waveform_are_refused(model: AudioModel) -> None:
    for wave, match in (
        (np.zeros((1, 9), np.int16), "the waveform is int16"),
        (torch.zeros(1, 9, dtype=torch.int64), r"the waveform is torch\.int64"),
        ([[0.0] * 9], "the waveform is list"),
    ):
        with pytest.raises(ValueError, match=match):
            model.extract_features(wave)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("waveform", "match"),
    [
        (np.empty((2, 0), np.float32), "the waveform is empty"),
        (np.zeros((1, 2, 3), np.float32), r"shape \(1, 2, 3\)"),
        (np.array([[0, 0], [0, np.inf]], np.float32), "infinite at sample 1"),
        ([0.0, 0.1], "is list"),
    ],
)
def test_a_waveform_that_is_none_is_refused(
    model: AudioModel, waveform: object, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        model.nll(waveform)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["warp", "cuda:99", "meta", "mps"])
def test_a_device_that_cannot_be_used_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device is"):
        check_device(device)


def test_an_unknown_model_is_reported() -> None:
    with pytest.raises(FileNotFoundError, match="no model 'nonsense'"):
        audiomamba.load("nonsense")
