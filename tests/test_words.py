"""Takes that hold a clear word: those of which a judge is sure, and what is drawn for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import audiomamba
from audiomamba.audiomodel import AudioModel
from audiomamba.classifier import AudioClassifier, ClassifierConfig
from audiomamba.config import Words
from audiomamba.encoder_config import EncoderConfig
from audiomamba.words import TRIES, Judge, clear_takes, judge
from tests.commands import save_small

ENCODER = EncoderConfig(
    d_model=8, n_layers=1, d_state=4, subsampling=2, feed_forward=0, conv_kernel=3
)
SAMPLES = 800


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    return audiomamba.load(save_small(tmp_path_factory.mktemp("words") / "small"))


def save_classifier(folder: Path, sample_rate: int = 16000) -> str:
    config = ClassifierConfig(words=("no", "yes"), encoder=ENCODER, sample_rate=sample_rate)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AudioClassifier(config, backend="torch").save_pretrained(folder)
    return str(folder)


def judge_of(folder: str, sure: float) -> Judge:
    classifier = AudioClassifier.from_pretrained(folder, backend="torch")
    return Judge(
        classifier=classifier, words=Words(classifier=folder, sure=sure), weights_sha256=""
    )


@pytest.fixture(scope="module")
def heard(model: AudioModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[float]]:
    """A classifier, and the probabilities that it gives the model's first streams of seed 1."""
    folder = save_classifier(tmp_path_factory.mktemp("words") / "classifier")
    classifier = AudioClassifier.from_pretrained(folder, backend="torch")
    takes = model.generate_each(samples=SAMPLES, num=5 * TRIES, seed=1)
    return folder, [classifier.classify(take.waveform).probability for take in takes]


@settings(max_examples=10, deadline=None)
@given(
    rank=st.integers(0, 5 * TRIES - 1),
    num=st.integers(1, 4),
    first=st.integers(0, TRIES),
    batch=st.integers(1, 7),
)
def test_each_take_is_the_next_stream_that_is_clear(
    model: AudioModel,
    heard: tuple[str, list[float]],
    rank: int,
    num: int,
    first: int,
    batch: int,
) -> None:
    folder, probabilities = heard
    sure = sorted(probabilities)[rank]
    counted: list[int] = []
    chosen = list(
        clear_takes(
            *(model, judge_of(folder, sure)),
            samples=SAMPLES, num=num, first=first, seed=1, batch=batch, progress=counted.append,
        )
    )  # fmt: skip
    assert len(chosen) == num
    stream = first
    for take, word, drawn in chosen:
        tried = probabilities[stream : stream + TRIES]
        clear = next((i for i, value in enumerate(tried) if value >= sure), None)
        assert drawn == (TRIES if clear is None else clear + 1)
        assert take.index == stream + (int(np.argmax(tried)) if clear is None else clear)
        assert word.probability == pytest.approx(probabilities[take.index], abs=1e-6)
        stream += drawn
    # What is made is what is heard, and what is left of it is what is given.
    assert sum(x for x in counted if x > 0) == SAMPLES * (stream - first)
    assert sum(counted) == SAMPLES * num
    last = chosen[-1].take
    (again,) = model.generate_each(samples=SAMPLES, seed=1, first=last.index)
    assert np.array_equal(again.waveform, last.waveform)


def test_no_more_is_made_than_is_taken(model: AudioModel, heard: tuple[str, list[float]]) -> None:
    counted: list[int] = []
    chosen = clear_takes(
        *(model, judge_of(heard[0], 1e-9)),
        samples=SAMPLES, num=3, batch=1, progress=counted.append,
    )  # fmt: skip
    next(chosen)
    chosen.close()
    assert sum(counted) == SAMPLES


def test_what_cannot_be_heard_is_refused(
    model: AudioModel, heard: tuple[str, list[float]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"small names no classifier of words"):
        judge(model)
    own = audiomamba.load(model.name)
    own.words = Words(classifier=save_classifier(tmp_path / "slow", 8000), sure=0.5)
    with pytest.raises(ValueError, match=r"hears 8000 Hz and .* makes 16000 Hz; name another"):
        judge(own)
    own.words = Words(classifier=heard[0], sure=0.5)
    one = judge(own)
    assert judge(own, 0.25).words.sure == 0.25
    assert len(one.weights_sha256) == 64
    for wrong, why in (
        ({"samples": 100}, r"samples is 100; a word is heard in \d+ at least"),
        ({"num": 0}, "num is 0; it must be at least 1"),
        ({"temperature": -1.0}, "temperature is -1"),
    ):
        with pytest.raises(ValueError, match=why):
            clear_takes(own, one, **{"samples": SAMPLES, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sure is 1\.5; it must be above 0 and at most 1"):
        judge(own, 1.5)


def test_a_model_says_which_words_it_asks_for(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "small")
    model = audiomamba.load(folder)
    assert model.words is None
    model.words = Words(classifier="digit_classifier", sure=0.5)
    model.save(tmp_path / "asking")
    assert audiomamba.load(tmp_path / "asking").words == model.words
    assert audiomamba.load("digits").words == Words(classifier="digit_classifier", sure=0.95)
    values = json.loads((folder / "config.json").read_text())
    for wrong, why in (
        ({"classifier": "a", "sure": 2.0}, "sure is 2.0; it must be above 0 and at most 1"),
        ({"classifier": "a"}, "words lacks the key 'sure'"),
        ({"classifier": 1, "sure": 0.5}, "words.classifier is 1; it must be of type str"),
        (0.5, "words is 0.5; it must be an object"),
    ):
        values["generation"]["words"] = wrong
        (folder / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=rf"config\.json: {why}"):
            audiomamba.load(folder)
