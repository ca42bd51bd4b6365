"""What NeMo's models ask of an encoder."""

from __future__ import annotations

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
