"""Log-mel features: torchaudio's numbers, exact counts, and no effect of padding."""

from __future__ import annotations

import pytest
import torch

from audiomamba.features import count_frames, log_mel, mel_filters


@pytest.mark.parametrize(("rate", "bands"), [(16000, 80), (8000, 40), (22050, 64)])
def test_features_are_torchaudios(rate: int, bands: int) -> None:
    torchaudio = pytest.importorskip("torchaudio")
    window, hop = round(0.025 * rate), round(0.01 * rate)
    mel = torchaudio.transforms.MelSpectrogram(
        rate,
        n_fft=window,
        hop_length=hop,
        n_mels=bands,
        center=False,
        norm="slaney",
        mel_scale="slaney",
    )
    x = 0.1 * torch.randn(2, 12345)
    got, counts = log_mel(x, n_mels=bands, sample_rate=rate)
    wanted = mel(x).clamp(min=1e-10).log().mT
    assert counts.tolist() == [wanted.shape[1]] * 2
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)  # filters in float32 there


@pytest.mark.parametrize("normalize", [False, True])
def test_a_row_is_what_it_is_alone(normalize: bool) -> None:
    lengths = torch.tensor([4000, 0, 399, 400, 559, 560, 1700])
    x = torch.randn(7, 4100, dtype=torch.float64)
    bad = torch.where(torch.arange(4100) < lengths[:, None], x, torch.nan).requires_grad_()
    got, counts = log_mel(bad, lengths, normalize=normalize)
    assert counts.tolist() == [23, 0, 0, 1, 1, 2, 9] == count_frames(lengths).tolist()
    for i, n in enumerate(lengths.tolist()):
        alone, frames = log_mel(x[i : i + 1, :n], normalize=normalize)
        assert alone.shape == (1, counts[i], 80)
        assert frames.tolist() == [counts[i]]
        torch.testing.assert_close(got[i, : counts[i]], alone[0])
        assert not got[i, counts[i] :].any()
    (gradient,) = torch.autograd.grad(got.square().sum(), bad)
    assert gradient.isfinite().all()
    if normalize:
        row = got[0, : counts[0]]
        torch.testing.assert_close(row.mean(0), torch.zeros(80).double())
        torch.testing.assert_close(
            row.var(0, correction=0), torch.ones(80).double(), rtol=1e-3, atol=0
        )


def test_silence_and_autocast_are_finite() -> None:
    x = torch.zeros(1, 800)
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = log_mel(x.bfloat16(), normalize=True)
    assert features.dtype == torch.float32
    assert not features.any()
    torch.testing.assert_close(log_mel(x)[0], torch.full((1, 3, 80), 1e-10).log())


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match=r"torch.int64 of shape \(3,\); it must be floating point"):
        log_mel(torch.arange(3))
    with pytest.raises(ValueError, match="lengths holds 801"):
        log_mel(torch.zeros(1, 800), torch.tensor([801]))
    with pytest.raises(ValueError, match="n_mels is 0; it must be at least 1"):
        mel_filters(0, 16000)
    with pytest.raises(ValueError, match=r"n_mels is 256: at 16000 Hz band .* take fewer bands"):
        mel_filters(256, 16000)
