"""A generative waveform model as a front end: its own features at one rate."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiomamba.models.waveform import WaveformModel
from audiomamba.tokenizer import Tokenizer
from audiomamba_kernels.ragged import check_lengths


class WaveformFeatures(nn.Module):
    """What a `WaveformModel` makes of a waveform, one vector for each frame of its centre.

    The last block of each tier speaks; outer tiers, which have more frames, by the mean of those in
    a frame. A frame is made of samples before its end. Freeze the network (`requires_grad_(False)`)
    or train it along: the weights have gradients, the waveform, which becomes levels, has none.

    Args:
        network: What it takes features from, as `audiomamba.load("piano").network`.

    Attributes:
        d_output: Features a frame: the sum of the widths of all tiers.
        period: Samples a frame.

    Example:
        >>> model = audiomamba.load("piano")  # doctest: +SKIP
        >>> features = WaveformFeatures(model.network)  # doctest: +SKIP
        >>> config = EncoderConfig(d_input=features.d_output, subsampling=1)  # doctest: +SKIP
    """

    def __init__(self, network: WaveformModel) -> None:
        super().__init__()
        self.network = network
        config = network.config
        self.period = config.period
        self.d_output = sum(config.d_model << i for i in range(len(config.tiers)))
        # Blocks run inwards and outwards: the last of a tier is the last but those outside it.
        self._last = [
            (-1 - sum(tier.n_layers for tier in config.tiers[:i]), prod(config.pools[i:]))
            for i in range(len(config.tiers))
        ]

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map waveforms to features.

        Args:
            waveform: Floating point, (batch, samples), in [-1, 1] at the model's rate.
            lengths: Samples of each, (batch,), integers; None is all. What follows in a row has no
                effect.

        Returns:
            Features (batch, frames, d_output), zero from the end of a row on, and the counts of
            frames (batch,), int64: lengths / period, rounded up.

        Raises:
            ValueError: If a shape, a length or a sample is none.
            TypeError: If lengths are no tensor.
        """
        tokens = encode_rows(self.network.config.tokenizer, waveform, lengths)
        hidden, counts = self.network.extract_features(tokens, lengths)
        pooled = [pool_mean(hidden[i], counts[i], pool) for i, pool in self._last]
        return torch.cat(pooled, dim=-1), counts[self._last[-1][0]]


def pool_mean(x: Tensor, counts: Tensor, pool: int) -> Tensor:
    """Return means over `pool` frames of x (batch, time, d), of those that are valid."""
    batch, steps, d = x.shape
    sums = F.pad(x, (0, 0, 0, -steps % pool)).view(batch, -1, pool, d).sum(2)
    first = torch.arange(0, steps, pool, device=x.device)
    return sums / (counts[:, None] - first).clamp(1, pool)[..., None]


def encode_rows(tokenizer: Tokenizer, waveform: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the levels of waveforms (batch, samples), and silence from each row's length on.

    Raises:
        ValueError: If a shape, a length or a sample is none.
        TypeError: If lengths are no tensor.
    """
    if waveform.dim() != 2 or waveform.shape[1] < 1:
        raise ValueError(
            f"the waveform has shape {tuple(waveform.shape)}; it must be (batch, samples), with a "
            "sample at least"
        )
    if lengths is None:
        return tokenizer.encode(waveform)
    if isinstance(lengths, Tensor):  # rows wait for them anyway: their values are looked at
        lengths = lengths.cpu()
    lengths = check_lengths(lengths, torch.empty(()).expand(waveform.shape))
    rows = [tokenizer.encode(row[:n]) for row, n in zip(waveform, lengths.tolist(), strict=True)]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.silence)
    return F.pad(padded, (0, waveform.shape[1] - padded.shape[1]), value=tokenizer.silence)
