"""Takes that hold a clear word: those of which a classifier is sure, and what is drawn for them."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import audiomamba
from audiomamba.audiomodel import AudioModel
from audiomamba.classifier import AudioClassifier, ClassifierConfig
from audiomamba.encoder_config import EncoderConfig
from audiomamba.words import TRIES, clear_takes
from tests.commands import save_small

ENCODER = EncoderConfig(
    d_model=8, n_layers=1, d_state=4, subsampling=2, feed_forward=0, conv_kernel=3
)
SAMPLES = 800


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    return audiomamba.load(save_small(tmp_path_factory.mktemp("words") / "small"))


def classifier_of(sample_rate: int = 16000) -> AudioClassifier:
    config = ClassifierConfig(words=("no", "yes"), encoder=ENCODER, sample_rate=sample_rate)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AudioClassifier(config, backend="torch").eval()


@pytest.fixture(scope="module")
def heard(model: AudioModel) -> tuple[AudioClassifier, list[float]]:
    """A classifier, and the probabilities that it gives the model's first streams of seed 1."""
    classifier = classifier_of()
    takes = model.generate_each(samples=SAMPLES, num=5 * TRIES, seed=1)
    return classifier, [classifier.classify(take.waveform).probability for take in takes]


@settings(max_examples=10, deadline=None)
@given(rank=st.integers(0, 5 * TRIES - 1), num=st.integers(1, 4), batch=st.integers(1, 7))
def test_each_take_is_the_next_stream_that_is_clear(
    model: AudioModel, heard: tuple[AudioClassifier, list[float]], rank: int, num: int, batch: int
) -> None:
    classifier, probabilities = heard
    sure = sorted(probabilities)[rank]
    options = {"samples": SAMPLES, "seed": 1, "batch": batch}
    chosen = list(clear_takes(model, classifier, num=num, sure=sure, **options))
    assert len(chosen) == num
    stream = 0
    for take, word, drawn in chosen:
        tried = probabilities[stream : stream + TRIES]
        clear = next((i for i, value in enumerate(tried) if value >= sure), None)
        assert drawn == (TRIES if clear is None else clear + 1)
        assert take.index == stream + (int(np.argmax(tried)) if clear is None else clear)
        assert word.probability == pytest.approx(probabilities[take.index], abs=1e-6)
        stream += drawn
    last = chosen[-1].take
    (again,) = model.generate_each(samples=SAMPLES, seed=1, first=last.index)
    assert np.array_equal(again.waveform, last.waveform)


def test_no_more_is_made_than_is_heard(model: AudioModel) -> None:
    made = count()
    classifier = classifier_of()
    chosen = clear_takes(
        *(model, classifier),
        num=3, sure=0.0, samples=SAMPLES, batch=1,
        progress=lambda samples: [next(made) for _ in range(samples)] and None,
    )  # fmt: skip
    next(chosen)
    chosen.close()
    assert next(made) == SAMPLES


def test_what_cannot_be_heard_is_refused(model: AudioModel) -> None:
    for sure in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"sure is .*; it must be from 0 to 1"):
            clear_takes(model, classifier_of(), sure=sure, samples=SAMPLES)
    with pytest.raises(ValueError, match=r"hears 8000 Hz and .* makes 16000"):
        clear_takes(model, classifier_of(8000), samples=SAMPLES)
    with pytest.raises(ValueError, match="at least"):
        next(clear_takes(model, classifier_of(), samples=100))


def test_a_model_says_how_sure_to_be(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "small")
    model = audiomamba.load(folder)
    assert model.sure == 0
    model.sure = 0.5
    model.save(tmp_path / "sure")
    assert audiomamba.load(tmp_path / "sure").sure == 0.5
    assert 0 < audiomamba.load("digits").sure < 1
    text = (folder / "config.json").read_text()
    for wrong in ("2", "true", '"0.5"'):
        (folder / "config.json").write_text(text.replace('"sure": 0.0', f'"sure": {wrong}'))
        with pytest.raises(ValueError, match=r"config\.json: sure is .*; it must be from 0 to 1"):
            audiomamba.load(folder)
