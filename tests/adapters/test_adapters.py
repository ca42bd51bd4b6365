"""Every adapter gives the frames of the encoder it wraps, whatever stands in the padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiomamba import EncoderConfig, MambaEncoder
from audiomamba.adapters.build import build_encoder
from audiomamba.adapters.for_espnet import ESPnetEncoder
from audiomamba.adapters.for_nemo import NeMoEncoder
from audiomamba.adapters.for_speechbrain import SpeechBrainEncoder, SpeechBrainLayers
from audiomamba.adapters.for_torchaudio import Transcriber, WaveformEncoder
from audiomamba_kernels.ragged import valid

SIZE = {"d_input": 8, "d_model": 8, "n_layers": 2, "d_state": 4, "conv_kernel": 5}
LENGTHS = torch.tensor([31, 40, 16, 3])

Frames = tuple[Tensor, "Tensor | None"]
Adapter = Callable[[MambaEncoder, Tensor, Tensor], Frames]


def torchaudio_transcriber(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    return Transcriber(encoder)(x, lengths)


def torchaudio_waveforms(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    """A front end that cuts a waveform into frames, so that input is the same."""

    def front_end(waves: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor]:
        assert samples is not None
        return waves.unflatten(1, (-1, 8)), samples // 8

    return WaveformEncoder(encoder, front_end)(x.flatten(1), lengths * 8)


def speechbrain(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    module = SpeechBrainEncoder(encoder)
    y = module(x, lengths / x.shape[1])
    relative = module.relative_lengths(lengths / x.shape[1], x.shape[1])
    return y, torch.round(relative * y.shape[1]).long()


def speechbrain_images(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    return SpeechBrainEncoder(encoder)(
        x.unflatten(2, (4, 2)), lengths / x.shape[1], pad_idx=0
    ), None


def speechbrain_layers(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    layers = SpeechBrainLayers(8, encoder)
    return layers(x, src_key_padding_mask=~valid(lengths, x.shape[1]))[0], None


def espnet(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    y, counts, states = ESPnetEncoder(8, encoder)(x, lengths)
    assert states is None
    return y, counts


def espnet_interctc(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    (y, _), counts, _ = ESPnetEncoder(8, encoder, interctc_layer_idx=[1])(x, lengths)
    return y, counts


def nemo(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    y, counts = NeMoEncoder(8, encoder)(audio_signal=x.transpose(1, 2), length=lengths)
    return y.transpose(1, 2), counts


def transformers(encoder: MambaEncoder, x: Tensor, lengths: Tensor) -> Frames:
    from audiomamba.adapters.for_transformers import AudiomambaEncoderModel

    model = AudiomambaEncoderModel.from_encoder(encoder)
    mask = valid(lengths, x.shape[1]).int()
    y = model(x, attention_mask=mask).last_hidden_state
    return y, model._get_feature_vector_attention_mask(y.shape[1], mask).sum(1)


ADAPTERS: list[Adapter] = [
    torchaudio_transcriber,
    torchaudio_waveforms,
    speechbrain,
    speechbrain_images,
    speechbrain_layers,
    espnet,
    espnet_interctc,
    nemo,
    transformers,
]


@pytest.mark.parametrize("evil", [torch.nan, 1e30])
@pytest.mark.parametrize("direction", ["causal", "inner", "outer"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
def test_the_same_weights_give_the_same_frames(
    adapter: Adapter, direction: str, evil: float
) -> None:
    if adapter is transformers:
        pytest.importorskip("transformers")
    subsampling = 1 if adapter is speechbrain_layers else 4
    config = EncoderConfig(**SIZE, direction=direction, subsampling=subsampling)
    encoder = MambaEncoder(config, backend="torch").eval()  # which compiles nothing
    x = torch.randn(4, 40, 8)
    bad = torch.where(valid(LENGTHS, 40)[..., None], x, evil)
    y, counts = adapter(encoder, bad, LENGTHS)
    wanted = LENGTHS // subsampling
    assert counts is None or counts.tolist() == wanted.tolist()
    for row, (length, count) in enumerate(zip(LENGTHS.tolist(), wanted.tolist(), strict=True)):
        alone, _ = encoder(x[row : row + 1, :length])
        torch.testing.assert_close(y[row, :count], alone[0], rtol=1e-4, atol=1e-5)
        assert not y[row, count:].any()
    y.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("shape", [(1, 10), (1, 40), (2, 20), (2, 120), (2,), (2, 40, 8)], ids=str)
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    x, mask = torch.randn(2, 40, 8), torch.ones(shape, dtype=torch.bool)
    layers = SpeechBrainLayers(8, n_layers=1)
    with pytest.raises(ValueError, match=r"padding_mask has shape .*; it must be \(2, 40\), the"):
        layers(x, src_key_padding_mask=~mask)
    pytest.importorskip("transformers")
    from audiomamba.adapters.for_transformers import AudiomambaEncoderModel

    model = AudiomambaEncoderModel.from_encoder(MambaEncoder(EncoderConfig(**SIZE)))
    with pytest.raises(ValueError, match=r"attention_mask has shape .*; it must be \(2, 40\), the"):
        model(x, attention_mask=mask)


def test_an_encoder_is_made_loaded_or_shared(tmp_path: Path) -> None:
    made = build_encoder(None, SIZE)
    assert made.training
    assert build_encoder(made, {"d_input": 8}) is made
    made.save_pretrained(tmp_path)
    loaded = build_encoder(str(tmp_path), {})
    assert loaded.training
    assert torch.equal(loaded.norm.weight, made.norm.weight)
    with pytest.raises(
        ValueError, match="d_input is 80, but the encoder that is given has 8; leave"
    ):
        NeMoEncoder(80, made)
    with pytest.raises(ValueError, match=r"width is 3, but .* has 'no such option'"):
        SpeechBrainEncoder(made, width=3)
