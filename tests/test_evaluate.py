import dataclasses

import numpy as np
import pytest
import torch

from audiomamba import evaluate as module
from audiomamba.config import Tier, unet
from audiomamba.data.tokens import INDEX, TOKENS, TokenFile, TokenStore, write_index
from audiomamba.evaluate import cut, evaluate, total_bits
from audiomamba.models.waveform import WaveformModel
from audiomamba.tokenizer import Tokenizer

MODEL = dataclasses.replace(
    unet(8, 1, (4, 2), Tier(mixer="lti", complex=True, d_state=4), Tier(d_state=4)), sample_rate=100
)
LENGTHS = (37, 150, 8, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    files, offset = [], 0
    for i, n in enumerate(LENGTHS):
        names = {"path": f"test/{i}.wav", "split": "test", "peak": 1.0, "sha256": ""}
        files.append(TokenFile(offset=offset, samples=n, **names))
        offset += n
    (directory / TOKENS).write_bytes(random.integers(256, size=offset).astype(np.uint8).tobytes())
    about = {"tokenizer": Tokenizer(), "sample_rate": 100, "split_rule": "", "skipped": {}}
    write_index(directory / INDEX, files, **about)
    return TokenStore(directory)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WaveformModel(MODEL)


@torch.no_grad()
def expected(network, store, samples=None):
    """Return the bits of each clip (of its first samples), one by one, in one chunk."""
    clips = [torch.from_numpy(store.read(f, 0, f.samples)).long() for f in store.files("test")]
    return [network.nll(clip[None, :samples]).double().sum().item() for clip in clips]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("chunk", [8, 30, 1000])
def test_every_sample_counts_once_however_it_is_cut(network, store, batch, chunk):
    heard = []
    bits = evaluate(
        network, store, batch=batch, chunk=chunk, progress=lambda *done: heard.append(done)
    )
    assert bits == pytest.approx(sum(expected(network, store)) / sum(LENGTHS), rel=1e-6)
    assert heard[-1] == (sum(LENGTHS), sum(LENGTHS))
    assert heard == sorted(heard)


def test_seconds_read_the_same_from_every_clip(network, store):
    bits = evaluate(network, store, seconds=0.8)  # 80 samples, 20 a clip
    assert bits == pytest.approx(sum(expected(network, store, 20)) / (20 + 20 + 8 + 1), rel=1e-6)


def test_very_long_clips_are_read_in_pieces(network, store, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 40)
    pieces = cut(store, "test")
    assert [piece.samples for piece in pieces] == [40, 40, 40, 37, 30, 8, 1]
    bits, samples = total_bits(network, store, pieces, batch=2)
    assert samples == sum(LENGTHS)
    assert abs(bits - sum(expected(network, store))) > 1e-3
    assert bits == pytest.approx(sum(expected(network, store)), rel=0.05)


def test_seconds_of_more_than_a_piece_are_all_read(store, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 40)
    pieces = cut(store, "test", 4.0)  # 400 samples, 100 a clip
    assert [piece.samples for piece in pieces] == [40, 40, 37, 20, 8, 1]
    assert [piece.start for piece in pieces] == [0, 40, 0, 80, 0, 0]


def test_the_network_is_left_as_it_was(network, store):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    evaluate(network.train(), store, seconds=0.1)
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_tokens_at_another_rate_are_refused(store):
    faster = WaveformModel(dataclasses.replace(MODEL, sample_rate=200))
    with pytest.raises(ValueError, match="holds audio at 100 Hz, the model is of 200 Hz"):
        evaluate(faster, store)


def test_other_tokens_and_empty_splits_are_refused(network, store):
    with pytest.raises(ValueError, match="has no validation files"):
        evaluate(network, store, "validation")
    other = WaveformModel(dataclasses.replace(MODEL, tokenizer=Tokenizer("linear")))
    with pytest.raises(ValueError, match=r"prepare the audio again with the model's"):
        evaluate(other, store)
