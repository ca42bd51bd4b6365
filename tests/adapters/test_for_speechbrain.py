"""Inside SpeechBrain itself: a recipe's YAML, its losses, and a TransformerASR."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from audiomamba.adapters.for_speechbrain import SpeechBrainEncoder, SpeechBrainLayers
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


def test_a_chunk_config_cuts_time() -> None:
    from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

    layers = SpeechBrainLayers(8, n_layers=1, d_state=4, conv_kernel=5).eval()
    x = torch.randn(2, 12, 8)
    y, none = layers(x, torch.zeros(12, 12).bool(), None, None, DynChunkTrainConfig(chunk_size=4))
    assert none is None
    torch.testing.assert_close(y, layers.encoder(x, chunk=4)[0])
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
