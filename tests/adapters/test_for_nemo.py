"""What NeMo's models ask of an encoder."""

from __future__ import annotations

import pytest
import torch

from audiomamba.adapters.for_nemo import NeMoEncoder


def test_channels_come_first_and_names_are_nemos() -> None:
    encoder = NeMoEncoder(feat_in=8, d_model=6, n_layers=1, d_state=4, conv_kernel=5).eval()
    x, length = torch.randn(2, 8, 23), torch.tensor([23, 10])
    y, counts = encoder(audio_signal=x, length=length)
    assert y.shape == (2, encoder._feat_out, 5)
    assert counts.tolist() == [5, 2]
    assert (encoder._feat_in, encoder.d_model, encoder.subsampling_factor) == (8, 6, 4)
    torch.testing.assert_close(y.mT, encoder.encoder(x.mT, length)[0])


def test_it_is_frozen_while_a_model_transcribes() -> None:
    """By the calls of NeMo's `transcribe`, and of `freeze_encoder` before it."""
    encoder = NeMoEncoder(feat_in=8, d_model=6, n_layers=1, d_state=4, conv_kernel=5)
    with pytest.raises(ValueError, match="the encoder is not frozen; call freeze"):
        encoder.unfreeze(partial=True)
    encoder.encoder.norm.weight.requires_grad_(False)
    before = trained(encoder)
    encoder.freeze()
    assert not any(trained(encoder).values())
    assert not any(module.training for module in encoder.modules())
    encoder.unfreeze(partial=True)
    assert trained(encoder) == before
    assert all(module.training for module in encoder.modules())
    encoder.freeze()
    encoder.freeze()
    encoder.unfreeze(partial=True)
    assert not any(trained(encoder).values())
    encoder.unfreeze()
    assert all(trained(encoder).values())


def trained(encoder: NeMoEncoder) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in encoder.named_parameters()}
