"""A generative model's own features, for waveforms of any length in padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba import EncoderConfig, MambaEncoder
from audiomamba.audiomodel import AudioModel
from audiomamba.config import ModelConfig, Tier, unet
from audiomamba.models.features import WaveformFeatures
from audiomamba.models.waveform import WaveformModel
from audiomamba.tokenizer import Tokenizer
from audiomamba_kernels.ragged import valid

LENGTHS = torch.tensor([25, 1, 0, 12, 13, 6])
POOLS = [(), (4,), (3, 2)]


def small(pools: tuple[int, ...] = (3, 2), **options: Any) -> WaveformModel:
    torch.manual_seed(0)
    tier = Tier(d_state=4, complex=True)
    config = unet(8, 2, pools, Tier(mixer="lti", d_state=4), tier)
    return WaveformModel(ModelConfig(**{**vars(config), **options})).double()


def waves(lengths: Tensor = LENGTHS) -> Tensor:
    x = torch.rand(len(lengths), 25) * 1.8 - 0.9
    return torch.where(valid(lengths, 25), x, torch.nan)


@pytest.mark.parametrize("pools", POOLS)
def test_every_block_speaks_at_its_rate_and_padding_does_not(pools: tuple[int, ...]) -> None:
    model = AudioModel(small(pools))
    x = waves()
    features, counts = model.extract_features(x, LENGTHS)
    rates = {(): [1, 1], (4,): [1, 1, 4, 4, 1, 1], (3, 2): [1, 1, 3, 3, 6, 6, 3, 3, 1, 1]}[pools]
    assert len(features) == len(counts) == len(rates)
    for h, count, rate in zip(features, counts, rates, strict=True):
        assert count.tolist() == [-(-n // rate) for n in LENGTHS.tolist()]
        assert h.shape[:2] == (6, -(-25 // rate))
        assert (h[~valid(count, h.shape[1])] == 0).all()
        assert not h.requires_grad
    for i, n in enumerate(LENGTHS.tolist()):
        if n:
            alone, _ = model.extract_features(x[i : i + 1, :n])
            for h, a in zip(features, alone, strict=True):
                torch.testing.assert_close(h[i : i + 1, : a.shape[1]], a, rtol=1e-9, atol=1e-9)


def test_they_are_those_of_the_model_itself() -> None:
    network = small()
    tokens = torch.randint(0, 256, (2, 12))
    (*_, last), _ = network.extract_features(tokens)
    previous = torch.cat([torch.full((2, 1), 128), tokens[:, :-1]], dim=1)
    torch.testing.assert_close(network.head(network.norm(last)), network(previous)[0])


@pytest.mark.parametrize("pools", POOLS)
@pytest.mark.parametrize("encoding", ["mu-law", "mu-law-sashimi"])
def test_one_sequence_of_all_tiers(pools: tuple[int, ...], encoding: Any) -> None:
    network = small(pools, tokenizer=Tokenizer(encoding))
    frontend = WaveformFeatures(network)
    x = waves()
    features, counts = frontend(x, LENGTHS)
    period = network.config.period
    assert counts.tolist() == [-(-n // period) for n in LENGTHS.tolist()]
    assert features.shape == (6, -(-25 // period), frontend.d_output)
    assert (features[~valid(counts, features.shape[1])] == 0).all()
    for i, n in enumerate(LENGTHS.tolist()):
        if n:
            alone, count = frontend(x[i : i + 1, :n])
            torch.testing.assert_close(features[i : i + 1, : int(count)], alone)
    # The outermost tier by hand: means over those samples of a frame that are there.
    hidden, _ = network.extract_features(frontend_tokens(network, x), LENGTHS)
    for i, n in enumerate(LENGTHS.tolist()):
        for frame in range(int(counts[i])):
            mean = hidden[-1][i, frame * period : min(n, (frame + 1) * period)].mean(0)
            torch.testing.assert_close(features[i, frame, :8], mean)


def frontend_tokens(network: WaveformModel, x: Tensor) -> Tensor:
    rows = []
    for row, n in zip(x, LENGTHS.tolist(), strict=True):
        tokens = network.config.tokenizer.encode(row[:n])
        rows.append(torch.nn.functional.pad(tokens, (0, 25 - n)))
    return torch.stack(rows)


def test_an_encoder_on_top_trains_the_whole() -> None:
    frontend = WaveformFeatures(small().float())
    config = EncoderConfig(d_input=frontend.d_output, d_model=6, n_layers=1, subsampling=1)
    features, counts = frontend(waves(), LENGTHS)
    y, lengths = MambaEncoder(config)(features, counts)
    assert lengths.tolist() == counts.tolist()
    y.square().sum().backward()
    unused = {"network.norm.weight", "network.head.weight", "network.head.bias"}
    for name, parameter in frontend.named_parameters():
        assert (parameter.grad is None) == (name in unused), name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("waveform", "lengths", "message"),
    [
        (torch.zeros(4), None, r"shape \(4,\); it must be \(batch, samples\)"),
        (torch.zeros(2, 0), None, "with a sample at least"),
        (torch.zeros(2, 4), torch.tensor([5, 1]), "lengths holds 5"),
        (torch.full((1, 4), torch.nan), None, "a sample is nan"),
        (torch.zeros(2, 4, dtype=torch.long), None, r"must be (a )?floating.point"),
    ],
)
def test_wrong_waveforms_are_refused(waveform: Tensor, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaveformFeatures(small())(waveform, lengths)
    with pytest.raises(ValueError, match=message):
        AudioModel(small()).extract_features(waveform.numpy(), lengths)


def test_lengths_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(TypeError, match="lengths is of type list; it must be a tensor of integers"):
        WaveformFeatures(small())(torch.zeros(2, 4), [4, 1])  # type: ignore[arg-type]


@pytest.mark.gpu
def test_lengths_on_a_gpu_are_looked_at() -> None:
    features = WaveformFeatures(small()).cuda()
    with pytest.raises(ValueError, match="lengths holds 5; each must be 0 to 4"):
        features(torch.zeros(2, 4).cuda(), torch.tensor([5, 1]).cuda())
