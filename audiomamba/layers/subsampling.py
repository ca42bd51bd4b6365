"""A convolutional front end that lowers the frame rate, causal, with exact lengths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (64, 32)  # ConMamba's


class Subsampling(nn.Module):
    """Convolutions 3 x 3 of stride 2 over time and features, ReLU; a linear map to d_model.

    Output frame i is made when input frames i * factor, ..., (i + 1) * factor - 1 are there, from
    these and from up to 3 before them. Of time input frames come time // factor; what is left over
    makes none. It is causal for any encoder: bidirectional layers look ahead themselves, and thus
    it streams, and its lengths are exact. Two-dimensional filters are shared by neighbouring mel
    bands. Without factor it is the linear map alone.

    Args:
        d_input: Features a frame.
        d_model: Width of the output.
        factor: 1, 2 or 4.
        dropout: Of the output.

    Source: ConMamba's code (channels 64 and 32); ESPnet's Conv2dSubsampling, without padding there.
    """

    def __init__(self, d_input: int, d_model: int, factor: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.d_input = d_input
        self.factor = factor
        channels, width = 1, d_input
        convolutions = []
        for following in CHANNELS[: factor.bit_length() - 1]:
            convolutions.append(nn.Conv2d(channels, following, 3, stride=2, padding=(0, 1)))
            channels, width = following, (width + 1) // 2
        self.convolutions = nn.ModuleList(convolutions)
        self.out_proj = nn.Linear(channels * width, d_model)
        self.dropout = nn.Dropout(dropout)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """Return each convolution's last input frame, zeros (batch, channels, 1, width)."""
        states, width = [], self.d_input
        for convolution in self.convolutions:
            weight = convolution.weight
            assert isinstance(weight, Tensor)
            states.append(weight.new_zeros(batch, weight.shape[1], 1, width))
            width = (width + 1) // 2
        return tuple(states)

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map x (batch, time >= factor, d_input) to (y (batch, time // factor, d_model), state).

        The state is of use where time is a multiple of the factor.
        """
        state = self.initial_state(x.shape[0]) if state is None else state
        h, states = x[:, None], []
        for convolution, past in zip(self.convolutions, state, strict=True):
            h = torch.cat([past.to(h.dtype), h], dim=2)
            states.append(h[:, :, -1:].to(past.dtype))
            h = F.relu(convolution(h))
        # The residual stream keeps the input's dtype under autocast.
        y: Tensor = self.dropout(self.out_proj(h.transpose(1, 2).flatten(2))).to(x.dtype)
        return y, tuple(states)
