"""A layer of the encoder: a Mamba mixer, and Conformer's modules around it where asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiomamba.encoder_config import EncoderConfig
from audiomamba.layers.bidirectional import InnerBidirectional, OuterBidirectional
from audiomamba.layers.convolution import ConvModule
from audiomamba.layers.mamba import Mamba, MambaState
from audiomamba_kernels import Backend


class EncoderLayerState(NamedTuple):
    """What a layer carries; `conv` is empty, (batch, 0, d_model), without a convolution module."""

    mixer: MambaState
    conv: Tensor


class FeedForward(nn.Module):
    """Norm, linear map, SiLU, dropout, linear map."""

    def __init__(self, d_model: int, expand: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.up = nn.Linear(d_model, expand * d_model)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(expand * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_model) to (..., d_model)."""
        y: Tensor = self.down(self.dropout(F.silu(self.up(self.norm(x)))))
        return y


class EncoderLayer(nn.Module):
    """x + mixer(norm(x)); with all modules, ConMamba's macaron layer.

        x = x + feed_forward(x) / 2
        x = x + mixer(norm(x))
        x = x + conv(x)
        x = norm(x + feed_forward(x) / 2)

    Each is there if the config has it; the last norm belongs to the feed-forwards. In training each
    addend goes through dropout, and is skipped for an utterance, or for what is given of one at a
    time, with the probability `skip` (stochastic depth, Huang et al. 2016, arXiv 1603.09382), by
    PyTorch's global generator.

    Args:
        config: What it is made of.
        skip: Probability.
        backend: Which kernels run; None is the fastest.

    Norms are RMSNorm, and the mixer has dropout as the other modules have; ConMamba has LayerNorm,
    and none there.

    Source: Jiang et al. 2024 (arXiv 2407.09732) and their code, ConmambaEncoderLayer; Gulati et al.
    2020 (arXiv 2005.08100), section 2.4.
    """

    def __init__(self, config: EncoderConfig, skip: float, backend: Backend | None = None) -> None:
        super().__init__()
        d_model = config.d_model
        self.skip = skip
        self.dropout = nn.Dropout(config.dropout)
        kinds = {"causal": Mamba, "inner": InnerBidirectional, "outer": OuterBidirectional}
        self.norm = nn.RMSNorm(d_model, eps=1e-5)
        self.mixer = kinds[config.direction](
            d_model,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            selective=config.mixer == "s6",
            complex=config.complex,
            backend=backend,
        )
        self.conv: ConvModule | None = None
        if config.conv_kernel:
            causal = config.direction == "causal"
            self.conv = ConvModule(d_model, config.conv_kernel, causal=causal)
        self.out_norm: nn.RMSNorm | None = None
        if config.feed_forward:
            self.first = FeedForward(d_model, config.feed_forward, config.dropout)
            self.second = FeedForward(d_model, config.feed_forward, config.dropout)
            self.out_norm = nn.RMSNorm(d_model, eps=1e-5)

    def initial_state(self, batch: int) -> EncoderLayerState:
        """Return the state for silence."""
        mixer: Any = self.mixer
        none = self.norm.weight.new_zeros(batch, 0, self.norm.weight.shape[0])
        conv = none if self.conv is None else self.conv.initial_state(batch)
        return EncoderLayerState(mixer.initial_state(batch), conv)

    def forward(
        self,
        x: Tensor,
        state: EncoderLayerState | None = None,
        *,
        lengths: Tensor | None = None,
        ahead: int = 0,
    ) -> tuple[Tensor, EncoderLayerState]:
        """Map x (batch, time, d_model) to y of the same shape.

        Args:
            x: Input, time > ahead, finite in the padding too.
            state: What came before; None is silence.
            lengths: (batch,), integers from 0 to time; None is time. What follows in a row has no
                effect on valid frames; y is finite but not zero there.
            ahead: Frames at the end that the returned state does not hold; 0 if causal.

        Returns:
            y, and the state after the first time - ahead frames.
        """
        mixer, conv = (None, None) if state is None else state
        if self.out_norm is not None:
            x = x + self._branch(self.first(x) / 2)
        options = {"ahead": ahead} if ahead else {}
        y, mixer = self.mixer(self.norm(x), mixer, lengths=lengths, **options)
        x = x + self._branch(y)
        if self.conv is None:
            conv = x.new_empty(x.shape[0], 0, x.shape[2])
        else:
            y, conv = self.conv(x, conv, lengths=lengths, ahead=ahead)
            x = x + self._branch(y)
        if self.out_norm is not None:
            x = self.out_norm(x + self._branch(self.second(x) / 2))
        return x, EncoderLayerState(mixer, conv)

    def _branch(self, y: Tensor) -> Tensor:
        y = self.dropout(y)
        if not (self.training and self.skip):
            return y
        kept = torch.rand(y.shape[0], 1, 1, device=y.device) >= self.skip
        return torch.where(kept, y / (1 - self.skip), 0)
