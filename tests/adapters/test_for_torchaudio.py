"""Inside torchaudio's RNNT with its beam search; waveforms as Wav2Vec2 takes them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

from audiomamba import EncoderConfig, MambaEncoder
from audiomamba.adapters.for_torchaudio import Transcriber, WaveformEncoder
from audiomamba.config import Tier, unet
from audiomamba.features import log_mel
from audiomamba.models.features import WaveformFeatures
from audiomamba.models.waveform import WaveformModel

SMALL = EncoderConfig(d_input=8, d_model=8, n_layers=2, d_state=4, conv_kernel=5, subsampling=2)

STREAMING: list[dict[str, Any]] = [{"direction": "causal"}, {"chunk": 3, "lookahead": 1}]


def small(**options: Any) -> MambaEncoder:
    return MambaEncoder(dataclasses.replace(SMALL, **options), backend="torch").eval()


def beam_search(encoder: MambaEncoder) -> Any:
    models = pytest.importorskip("torchaudio.models")
    from torchaudio.models.rnnt import _Joiner, _Predictor

    predictor = _Predictor(
        5, 8, symbol_embedding_dim=4, num_lstm_layers=1, lstm_hidden_dim=4, lstm_layer_norm=True
    )
    rnnt = models.RNNT(Transcriber(encoder), predictor, _Joiner(8, 5)).eval()
    return models.RNNTBeamSearch(rnnt, blank=4, step_max_tokens=3)


@pytest.mark.parametrize("options", STREAMING)
@torch.no_grad()
def test_beam_search_in_segments_equals_the_whole(options: dict[str, Any]) -> None:
    search = beam_search(small(**options))
    x = torch.randn(40, 8)
    whole = search(x, torch.tensor(40), beam_width=3)
    state, hypotheses = None, None
    for piece in x.split(7):
        hypotheses, state = search.infer(piece, torch.tensor(len(piece)), 3, state, hypotheses)
    rest, _ = search.model.transcriber.finish(state)
    hypotheses = search._search(rest, hypotheses, 3)
    assert len(whole[0][0]) > 1
    assert [h[0] for h in hypotheses] == [h[0] for h in whole]
    torch.testing.assert_close(
        torch.tensor([h[3] for h in hypotheses]), torch.tensor([h[3] for h in whole])
    )


def test_rnnt_trains() -> None:
    functional = pytest.importorskip("torchaudio.functional")
    rnnt = beam_search(small()).model.train()
    targets = torch.randint(0, 4, (2, 3), dtype=torch.int32)
    target_lengths = torch.tensor([3, 2], dtype=torch.int32)
    joined, lengths, _, _ = rnnt(
        torch.randn(2, 16, 8),
        torch.tensor([16, 9], dtype=torch.int32),
        torch.cat([torch.full_like(targets[:, :1], 4), targets], dim=1),  # blank before the first
        target_lengths + 1,
    )
    assert joined.shape == (2, 8, 4, 5)
    assert lengths.tolist() == [8, 4]
    loss = functional.rnnt_loss(joined, targets, lengths, target_lengths, blank=4)
    loss.backward()
    assert loss.isfinite()
    assert rnnt.transcriber.encoder.norm.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@torch.no_grad()
def test_lengths_keep_their_type_as_torchaudios_do(dtype: torch.dtype) -> None:
    models = pytest.importorskip("torchaudio.models")
    x, lengths = torch.randn(2, 12, 8), torch.tensor([12, 12], dtype=dtype)
    emformer = models.Emformer(8, 2, 8, 1, segment_length=4, right_context_length=0).eval()
    for transcriber in (emformer, *(Transcriber(small(**o)) for o in STREAMING)):
        assert transcriber(x, lengths)[1].dtype == dtype
        assert transcriber.infer(x[:, :4], lengths.clamp(max=4))[1].dtype == dtype
    assert models.Conformer(8, 2, 8, 1, 3).eval()(x, lengths)[1].dtype == dtype
    waves, samples = 0.1 * torch.randn(2, 3000), torch.tensor([3000, 1700], dtype=dtype)
    for model in (tiny_wav2vec2(), WaveformEncoder(small(d_input=80))):
        assert model(waves, samples)[1].dtype == dtype
        assert model.extract_features(waves, samples, 1)[1].dtype == dtype


def tiny_wav2vec2() -> Any:
    models = pytest.importorskip("torchaudio.models")
    sizes = {"embed_dim": 8, "pos_conv_kernel": 3, "pos_conv_groups": 1, "num_layers": 1}
    sizes |= {"num_heads": 1, "ff_interm_features": 8}
    drops = dict.fromkeys(("projection", "attention", "ff_interm"), 0.0)
    return models.wav2vec2_model(
        "group_norm",
        [(8, 10, 5)],
        False,
        **{f"encoder_{name}": size for name, size in sizes.items()},
        **{f"encoder_{name}_dropout": drop for name, drop in drops.items()},
        encoder_dropout=0.0,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    ).eval()


@torch.no_grad()
def test_a_state_is_a_list_of_lists_with_the_batch_in_dimension_one() -> None:
    encoder = small(direction="causal")
    transcriber = Transcriber(encoder)
    x = torch.randn(3, 25, 8)
    _, _, states = transcriber.infer(x[:, :11], torch.tensor([11] * 3))
    assert len(states) == 1 + 2
    assert all(leaf.shape[1] == 3 for layer in states for leaf in layer)
    second = [[leaf[:, 1:2] for leaf in layer] for layer in states]
    # What stands behind the end of a row that is shorter has no effect on it.
    bad = x[1:2, 11:].clone()
    bad[:, 10:] = torch.nan
    y, lengths, _ = transcriber.infer(bad, torch.tensor([10]), second)
    assert lengths.tolist() == [5]
    torch.testing.assert_close(y[:, :5], encoder(x[1:2])[0][:, 5:10])
    assert not y[:, 5:].any()


@pytest.mark.parametrize("options", STREAMING)
def test_a_state_that_is_none_of_the_encoders_is_refused(options: dict[str, Any]) -> None:
    transcriber = Transcriber(small(**options))
    x, lengths = torch.randn(2, 11, 8), torch.tensor([11, 11])
    _, _, states = transcriber.infer(x, lengths)
    wider = [[*layer[:-1], layer[-1].repeat_interleave(2, -1)] for layer in states]
    for wrong in ([], states[:1], states[:-1], [*states, states[-1]], wider):
        with pytest.raises(ValueError, match="states are not those of the last call: a state of"):
            transcriber.infer(x, lengths, wrong)
    with pytest.raises(ValueError, match="the state is of 2 streams and the features of 1"):
        transcriber.infer(x[:1], lengths[:1], states)


def test_streams_in_chunks_are_equally_long() -> None:
    transcriber = Transcriber(small(chunk=3))
    with pytest.raises(ValueError, match=r"lengths are \[4, 3\] of 4 frames; streams in chunks"):
        transcriber.infer(torch.randn(2, 4, 8), torch.tensor([4, 3]))
    with pytest.raises(ValueError, match="chunk is 0 and direction 'inner'"):
        Transcriber(small()).infer(torch.randn(1, 4, 8), torch.tensor([4]))


@pytest.mark.parametrize("kind", ["log-mel", "waveform model"])
def test_waveforms_are_taken_as_wav2vec2_takes_them(kind: str) -> None:
    if kind == "log-mel":
        front_end: Any = None
        encoder = small(d_input=80)
        features = partial(log_mel, n_mels=80)
    else:
        config = unet(4, 1, (4,), Tier(), Tier())
        front_end = features = WaveformFeatures(WaveformModel(config))
        encoder = small(d_input=front_end.d_output)
    model = WaveformEncoder(encoder, front_end).eval()
    x = 0.1 * torch.randn(2, 3000)
    lengths = torch.tensor([3000, 1700])
    y, counts = model(x, lengths)
    wanted, frames = encoder(*features(x, lengths))
    torch.testing.assert_close(y, wanted)
    assert counts.tolist() == frames.tolist()
    layers, counts = model.extract_features(x, lengths)
    assert len(layers) == 2
    assert counts.tolist() == frames.tolist()
    first, none = model.extract_features(x, num_layers=1)
    assert len(first) == 1
    assert none is None
    torch.testing.assert_close(first[0][0], layers[0][0])
    assert model(x)[1] is None
