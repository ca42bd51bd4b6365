"""Models of one size behind one front end: Mamba, a GRU, torchaudio's Conformer."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from speech_clips import RATE
from speech_config import BANDS, Config
from torch import Tensor, nn

from audiomamba.classifier import CENTRE, QUIETEST, SCALE, mean_over_frames, scaled_log_mel
from audiomamba.encoder import MambaEncoder
from audiomamba.features import count_frames, frame_size, mel_filters
from audiomamba.layers.subsampling import Subsampling
from audiomamba_kernels.ragged import zero_padding

HEADS = 4  # of the Conformer's attention
MODELS = ("mamba", "mamba-causal", "gru", "conformer")


class MelFrontEnd(nn.Module):
    """80 log-mel bands every 10 ms; nothing is learnt."""

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, samples) to (batch, frames, 80), and counts of frames."""
        return scaled_log_mel(waveform, lengths, n_mels=BANDS, sample_rate=RATE)


class WaveformFrontEnd(nn.Module):
    """80 learnt filters on samples, complex, of 25 ms every 10 ms; the logarithm of their power.

    They begin as the mel bands and are free from there. A stack of strided convolutions that began
    at random had learnt nothing from half an hour of speech after 300 steps.

    Source: Zeghidour et al. 2018 (arXiv 1711.01161), time-domain filterbanks; they begin with Gabor
    filters, and a low-pass filter follows.
    """

    GAIN = 10.0  # of the weights over the filters: Adam's steps are then small against them

    def __init__(self) -> None:
        super().__init__()
        window, self.hop = frame_size(RATE)
        with torch.device("cpu"):  # on the meta device, where models are sized, it has no values
            spectrum = mel_filters(BANDS, RATE).sqrt().to(torch.complex128)
            turned = torch.fft.ifft(spectrum, window, dim=0, norm="forward").roll(window // 2, 0)
            filters = (turned * torch.hann_window(window, dtype=torch.float64)[:, None]).T
        weight = self.GAIN * torch.cat([filters.real, filters.imag])[:, None].float()
        self.weight = nn.Parameter(weight)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map (batch, samples) to (batch, frames, 80), and counts of frames."""
        x = zero_padding(waveform, lengths)[:, None]
        counts = count_frames(lengths, RATE)
        with torch.autocast(x.device.type, enabled=False):
            real, imaginary = F.conv1d(x, self.weight / self.GAIN, stride=self.hop).chunk(2, dim=1)
            power = real.square() + imaginary.square()
            features = ((power + math.exp(QUIETEST)).log() - CENTRE) / SCALE
        return zero_padding(features.transpose(1, 2), counts), counts


class Subsampled(nn.Module):
    """The encoder's subsampling before another body: a GRU in both directions, or a Conformer.

    torchaudio's Conformer masks padding in its attention alone; here its convolutions see zeros
    there too, so that a row does not depend on those beside it. Its batch norms count padding as
    they train.
    """

    def __init__(self, subsampling: Subsampling, body: nn.Module) -> None:
        super().__init__()
        self.subsampling, self.body = subsampling, body
        self._lengths: Tensor | None = None
        for module in body.modules():
            if isinstance(module, nn.Conv1d) and module.groups > 1:
                module.register_forward_pre_hook(self._hide_padding)

    def _hide_padding(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (zero_padding(inputs[0].mT, self._lengths).mT,)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (batch, time, 80) to (batch, time', width), as `MambaEncoder` does."""
        x, _ = self.subsampling(features)
        lengths = lengths // self.subsampling.factor
        if not isinstance(self.body, nn.GRU):
            self._lengths = lengths
            return self.body(x[:, : int(lengths.max())], lengths)  # type: ignore[no-any-return]
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        y, _ = nn.utils.rnn.pad_packed_sequence(self.body(packed)[0], batch_first=True)
        return y, lengths


class Network(nn.Module):
    """A front end, an encoder, and logits of each frame or of their mean."""

    def __init__(self, config: Config, encoder: nn.Module, outputs: int, *, pool: bool) -> None:
        super().__init__()
        waveform = config.front_end == "waveform"
        self.front_end = WaveformFrontEnd() if waveform else MelFrontEnd()
        self.encoder, self.pool = encoder, pool
        self.head = nn.Linear(width(encoder), outputs)

    def forward(
        self, waveform: Tensor, lengths: Tensor, hide: Callable[..., Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (batch, [time,] outputs) of waveforms (batch, samples), and counts."""
        features, lengths = self.front_end(waveform, lengths)
        if hide is not None:
            features = hide(features, lengths)
        y, lengths = self.encoder(features, lengths)
        return self.head(mean_over_frames(y, lengths) if self.pool else y), lengths


def width(encoder: Any) -> int:
    """Return how many channels an encoder puts out."""
    if isinstance(encoder, MambaEncoder):
        return encoder.config.d_model
    if isinstance(encoder.body, nn.GRU):
        return 2 * int(encoder.body.hidden_size)
    return int(encoder.subsampling.out_proj.out_features)


def build(model: str, config: Config, outputs: int, *, pool: bool) -> Network:
    """Build a model by name, with as many parameters as "mamba" has, as nearly as it can.

    Sized by: the width of "mamba-causal"; the GRU's hidden units; the Conformer's feed-forward.

    Raises:
        ImportError: If torchaudio, which has the Conformer, is missing.
    """

    def make(size: int, name: str = model) -> Network:
        if name.startswith("mamba"):
            direction = "causal" if name == "mamba-causal" else "inner"
            encoder: nn.Module = MambaEncoder(config.encoder(direction, size))
        else:
            body = gru(config, size) if name == "gru" else conformer(config, size)
            before = Subsampling(BANDS, config.d_model, config.subsampling, config.dropout)
            encoder = Subsampled(before, body)
        return Network(config, encoder, outputs, pool=pool)

    if model == "mamba":
        return make(config.d_model)
    with torch.device("meta"):
        wanted = parameters(make(config.d_model, "mamba"))
        sizes = range(1, 16 * config.d_model)
        above = bisect_left(sizes, wanted, key=lambda size: parameters(make(size)))
        near = sizes[max(above - 1, 0) : above + 1]
        size = min(near, key=lambda size: abs(parameters(make(size)) - wanted))
    return make(size)


def gru(config: Config, hidden: int) -> nn.GRU:
    """Return a GRU in both directions."""
    dropout = config.dropout if config.n_layers > 1 else 0.0
    return nn.GRU(
        *(config.d_model, hidden, config.n_layers),
        batch_first=True,
        bidirectional=True,
        dropout=dropout,
    )


def conformer_class() -> Any:
    """Return torchaudio's Conformer (Gulati et al. 2020, without its relative positions).

    Raises:
        ImportError: If torchaudio is missing.
    """
    try:
        from torchaudio.models import Conformer
    except (ImportError, OSError) as error:
        raise ImportError(
            f"the Conformer is torchaudio's, which cannot be imported ({error}); pip "
            "install --force-reinstall torch torchaudio, or leave conformer out of --models"
        ) from None
    return Conformer


def check_conformer(config: Config) -> None:
    """Check that `build` can make the Conformer.

    Raises:
        ImportError: If torchaudio is missing.
        ValueError: If its heads do not share d_model evenly.
    """
    conformer_class()
    if config.d_model % HEADS:
        raise ValueError(
            f"d_model is {config.d_model}; it must be a multiple of {HEADS}, the Conformer's "
            "heads, or leave conformer out of --models"
        )


def conformer(config: Config, feed_forward: int) -> nn.Module:
    """Return the Conformer."""
    model: nn.Module = conformer_class()(
        input_dim=config.d_model,
        num_heads=HEADS,
        ffn_dim=feed_forward,
        num_layers=config.n_layers,
        depthwise_conv_kernel_size=config.conv_kernel,
        dropout=config.dropout,
    )
    return model


def parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in network.parameters())
