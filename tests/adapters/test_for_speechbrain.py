"""Inside SpeechBrain itself: a recipe's YAML, its losses, and a TransformerASR."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba.adapters.for_speechbrain import (
    SpeechBrainEncoder,
    SpeechBrainLayers,
    absolute_lengths,
)
from audiomamba_kernels.ragged import valid


@pytest.fixture(scope="module", autouse=True)
def speechbrain() -> Iterator[Any]:
    """Take its lazy modules away afterwards: who looks through sys.modules would load them all."""
    package = pytest.importorskip("speechbrain")
    from speechbrain.utils.importutils import LazyModule

    yield package
    for name, module in list(sys.modules.items()):
        if isinstance(module, LazyModule):
            del sys.modules[name]


RECIPE = """
features: !new:speechbrain.lobes.features.Fbank
    n_mels: 80
CNN: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
    input_shape: !!python/tuple [8, 10, 80]
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: !!python/tuple [4, 2]
    kernel_sizes: !!python/tuple [3, 3]
    strides: !!python/tuple [2, 2]
    residuals: !!python/tuple [False, False]
encoder: !new:audiomamba.adapters.for_speechbrain.SpeechBrainEncoder
    d_input: 40
    d_model: 8
    n_layers: 1
    d_state: 4
    conv_kernel: 5
    subsampling: 1
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 8
    n_neurons: 5
modules:
    CNN: !ref <CNN>
    encoder: !ref <encoder>
    ctc_lin: !ref <ctc_lin>
"""


def test_a_recipe_trains(speechbrain: Any) -> None:
    from hyperpyyaml import load_hyperpyyaml
    from speechbrain.nnet.losses import ctc_loss

    class Recogniser(speechbrain.Brain):
        def compute_forward(self, batch: Any, stage: Any) -> Tensor:
            waveforms, wav_lens, *_ = batch
            x = self.modules.CNN(self.hparams.features(waveforms))
            assert x.dim() == 4
            y = self.modules.encoder(x, wav_lens)
            return self.modules.ctc_lin(y).log_softmax(-1)

        def compute_objectives(self, predictions: Tensor, batch: Any, stage: Any) -> Tensor:
            _, wav_lens, tokens, token_lens = batch
            loss: Tensor = ctc_loss(predictions, tokens, wav_lens, token_lens, blank_index=0)
            return loss

    hparams = load_hyperpyyaml(RECIPE)
    brain = Recogniser(
        hparams["modules"],
        opt_class=lambda parameters: torch.optim.AdamW(parameters, 1e-2),
        hparams=hparams,
        run_opts={"device": "cpu"},
    )
    brain.on_fit_start()
    batch = (
        0.1 * torch.randn(2, 6400),
        torch.tensor([1.0, 0.6]),
        torch.tensor([[1, 2], [3, 0]]),
        torch.tensor([1.0, 0.5]),
    )
    losses = [float(brain.fit_batch(batch)) for _ in range(8)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("direction", ["inner", "causal"])
@torch.no_grad()
def test_an_encoder_is_called_as_a_streaming_recipe_calls_its_own(direction: str) -> None:
    from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

    chunks = {"chunk": 8, "lookahead": 1} if direction == "inner" else {}
    sizes = {"d_input": 12, "d_model": 8, "n_layers": 1, "d_state": 4, "conv_kernel": 5}
    enc = SpeechBrainEncoder(**sizes, direction=direction, subsampling=1, **chunks).eval()
    src, lengths = torch.randn(2, 20, 3, 4), torch.tensor([20, 13])
    x, wav_lens = src.flatten(2), lengths / 20
    y = enc(src, wav_lens, pad_idx=0, dynchunktrain_config=None)
    torch.testing.assert_close(y, enc.encoder(x, lengths)[0])
    y = enc(src, wav_lens, pad_idx=0, dynchunktrain_config=DynChunkTrainConfig(4, 2))
    shorter = {"chunk": 4, "lookahead": 1} if chunks else {}
    torch.testing.assert_close(y, enc.encoder(x, lengths, **shorter)[0])


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # its decoder's
@pytest.mark.parametrize("direction", ["inner", "causal"])
def test_layers_run_inside_a_transformer(direction: str) -> None:
    from speechbrain.dataio.dataio import length_to_mask
    from speechbrain.lobes.models.transformer.TransformerASR import EncoderWrapper, TransformerASR

    asr = TransformerASR(
        tgt_vocab=5,
        input_size=12,
        d_model=8,
        nhead=2,
        num_encoder_layers=0,
        num_decoder_layers=1,
        d_ffn=8,
        dropout=0.0,
        causal=direction == "causal",
    )
    asr.encoder = SpeechBrainLayers(
        8, n_layers=1, d_state=4, conv_kernel=5, direction=direction, dropout=0.0
    )
    x, lengths = torch.randn(3, 20, 3, 4), torch.tensor([20, 13, 7])
    y, decoded = asr(x, torch.randint(1, 5, (3, 4)), lengths / 20)
    assert decoded.shape == (3, 4, 8)
    torch.testing.assert_close(EncoderWrapper(asr)(x, lengths / 20), y)
    mask = length_to_mask(lengths, 20).bool()
    assert not y[~mask].any()
    alone, _ = asr(x[1:2, :13], torch.randint(1, 5, (1, 4)), torch.ones(1))
    torch.testing.assert_close(y[1, :13], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # its decoder's
@torch.no_grad()
def test_layers_give_their_hidden_states_where_a_transformer_asks_for_them() -> None:
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

    sizes: dict[str, Any] = {"d_model": 8, "nhead": 2, "num_decoder_layers": 1, "d_ffn": 8}
    asr = TransformerASR(
        5, 12, num_encoder_layers=2, causal=False, output_hidden_states=True, **sizes
    ).eval()
    x, wav_lens = torch.randn(2, 20, 12), torch.tensor([1.0, 0.65])
    _, theirs = asr.encode(x, wav_lens)
    entered = []
    asr.encoder = SpeechBrainLayers(
        8, n_layers=2, d_state=4, conv_kernel=5, output_hidden_states=True
    ).eval()
    asr.encoder.register_forward_pre_hook(
        lambda _, args, options: entered.append(options["src"]), with_kwargs=True
    )
    y, states, decoded = asr(x, torch.randint(1, 5, (2, 4)), wav_lens)
    assert decoded.shape == (2, 4, 8)
    assert [s.shape for s in states] == [s.shape for s in theirs]
    torch.testing.assert_close(states[0][0], entered[0][0])
    layers, _ = asr.encoder.encoder.extract_features(entered[0], torch.tensor([20, 13]))
    torch.testing.assert_close(states[1:], layers)
    torch.testing.assert_close(asr.encoder.encoder.norm(states[-1]), y)
    assert not any(s[1, 13:].any() for s in states)
    encoded, states = asr.encode(x, wav_lens)
    torch.testing.assert_close(encoded, y)
    assert len(states) == 3


@torch.no_grad()
def test_a_transformer_that_is_to_stream_is_told_how() -> None:
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
    from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

    asr = TransformerASR(
        5, 12, 8, 2, 1, 0, causal=True, attention_type="RelPosMHAXL", positional_encoding=None
    ).eval()
    asr.encoder = layers = SpeechBrainLayers(8, n_layers=1, direction="causal").eval()
    with pytest.raises(NotImplementedError, match=r"layers\.encoder\.stream\(asr\.custom_src_mod"):
        asr.make_streaming_context(DynChunkTrainConfig(4))
    x, state, parts = torch.randn(2, 12, 12), None, []
    for piece in x.split(4, dim=1):
        y, state = layers.encoder.stream(asr.custom_src_module(piece), state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), asr.encode(x))


def test_a_chunk_config_cuts_time() -> None:
    from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

    layers = SpeechBrainLayers(8, n_layers=1, d_state=4, conv_kernel=5).eval()
    x = torch.randn(2, 12, 8)
    y, none = layers(x, torch.zeros(12, 12).bool(), None, None, DynChunkTrainConfig(chunk_size=4))
    assert none is None
    torch.testing.assert_close(y, layers.encoder(x, chunk=4)[0])
    ahead = SpeechBrainLayers(
        8, n_layers=1, d_state=4, conv_kernel=5, chunk=6, lookahead=2, output_hidden_states=True
    ).eval()
    y, _, (_, state) = ahead(x, None, None, None, DynChunkTrainConfig(chunk_size=4))
    wanted, _ = ahead.encoder(x, chunk=4, lookahead=2)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(ahead.encoder.norm(state), wanted)
    with pytest.raises(ValueError, match="src_mask is given, but direction is 'inner'; set"):
        layers(x, torch.zeros(12, 12).bool())
    with pytest.raises(
        ValueError, match="src_key_padding_mask has padding before a frame in row 0"
    ):
        layers(x, None, torch.arange(12).expand(2, 12) < 5)


def test_lengths_are_counted_as_speechbrain_counts_them() -> None:
    encoder = SpeechBrainEncoder(
        d_input=8, d_model=8, n_layers=1, d_state=4, subsampling=4, conv_kernel=5
    ).eval()
    lengths = torch.arange(4, 101)
    relative = encoder.relative_lengths(lengths / 100, 100)
    counts = torch.round(relative * 25).long()
    assert torch.equal(counts, lengths // 4)
    y = encoder(torch.randn(97, 100, 8), lengths / 100)
    assert torch.equal(y.any(-1), valid(counts, 25))
    with pytest.raises(ValueError, match=r"wav_lens is torch.int64; SpeechBrain's are relative"):
        encoder(torch.randn(97, 100, 8), lengths)


@pytest.mark.parametrize(("subsampling", "off"), [(1, {0}), (2, {0, 1}), (4, {-1, 0, 1})])
def test_lengths_over_the_input_count_a_frame_more_or_fewer(
    subsampling: int, off: set[int]
) -> None:
    encoder = SpeechBrainEncoder(d_input=8, d_model=8, n_layers=1, subsampling=subsampling)
    found = set()
    for time in range(1, 201):
        lengths, after = torch.arange(time + 1), time // subsampling
        made = lengths // subsampling
        found |= set((torch.round(lengths / time * after).long() - made).tolist())
        relative = encoder.relative_lengths(lengths / time, time)
        assert torch.equal(torch.round(relative * after).long(), made)
    assert found == off


def test_lengths_may_be_a_list_and_are_0_to_1() -> None:
    encoder = SpeechBrainEncoder(
        d_input=8, d_model=8, n_layers=1, d_state=4, subsampling=2, conv_kernel=5
    ).eval()
    x = torch.randn(2, 50, 8)
    torch.testing.assert_close(encoder(x, [1.0, 0.6]), encoder(x, torch.tensor([1.0, 0.6])))
    assert encoder.relative_lengths([1.0, 0.6], 50).tolist() == pytest.approx([1.0, 0.6])
    assert absolute_lengths([1.001, 0.6], 50).tolist() == [50, 30]
    for wrong, value in (([0.6, 1.02], "1.02"), ([-0.1, 1.0], "-0.1"), ([1.0, math.nan], "nan")):
        for wav_lens in (wrong, torch.tensor(wrong)):
            with pytest.raises(ValueError, match=f"wav_lens holds {value}; each must be 0 to 1"):
                encoder(x, wav_lens)
    # Where values are not looked at, as on a GPU, they are bounded.
    compiled = torch.compile(absolute_lengths, backend="eager", fullgraph=True)
    assert compiled(torch.tensor([-0.1, 0.6, 1.02]), 50).tolist() == [0, 30, 50]
