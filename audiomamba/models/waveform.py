"""The autoregressive waveform model: the level of the next sample given all before it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiomamba.config import ModelConfig
from audiomamba.models.unet import build
from audiomamba_kernels.ragged import check_lengths, valid, zero_padding


class WaveformModel(nn.Module):
    """Embedding, U-Net, norm and a linear head over the tokenizer's levels.

    Tokens enter one step late: logits at time t are made from tokens before t, the first from
    silence.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        levels = config.tokenizer.levels
        self.embedding = nn.Embedding(levels, config.d_model)
        self.unet = build(config.d_model, config.tiers, config.pools)
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.head = nn.Linear(config.d_model, levels)

    def initial_state(self, batch: int) -> Any:
        """Return the state before the first sample."""
        return self.unet.initial_state(batch)

    def forward(self, previous: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Predict each token from those before it.

        Args:
            previous: int64 (batch, time), the token before each step; time a multiple of
                `config.period`.
            state: From `initial_state` or an earlier call; None starts from silence.

        Returns:
            Logits (batch, time, levels), and the state after the last step.
        """
        y, state = self.unet(self.embedding(previous), state)
        return self.head(self.norm(y)), state

    def step(self, previous: Tensor, state: Any, phase: int) -> tuple[Tensor, Any]:
        """Predict one token: previous (batch,) to logits (batch, levels); phase: time % period."""
        y, state = self.unet.step(self.embedding(previous)[:, None], state, phase)
        return self.head(self.norm(y))[:, 0], state

    def extract_features(
        self, tokens: Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what each block makes of tokens, in the order in which they run.

        With pools (P_1, ..., P_n) a block inside the first i of them has a frame for every P_1 ...
        P_i samples; frame j is made of samples before (j + 1) P_1 ... P_i - 1, as in training,
        where a token enters one step late. A frame that is not whole is completed with silence.

        Args:
            tokens: int64 (batch, samples >= 1).
            lengths: (batch,), integers from 0 to samples; None is samples. What follows in a row
                has no effect.

        Returns:
            A tensor (batch, frames_i, d_i) for each block, zero from the end of a row on, and the
            counts of frames (batch,) of each, int64: lengths / (P_1 ... P_i), rounded up.

        Raises:
            ValueError: If a length is none.
        """
        batch, steps = tokens.shape
        silence = self.config.tokenizer.silence
        if lengths is None:
            lengths = torch.full((batch,), steps, device=tokens.device)
        lengths = check_lengths(lengths, tokens)
        tokens = torch.where(valid(lengths, steps), tokens, silence)
        total = steps + -steps % self.config.period
        previous = F.pad(tokens, (1, total - steps - 1), value=silence)
        hidden: list[Tensor] = []
        self.unet(self.embedding(previous), None, hidden)
        features, counts = [], []
        for h in hidden:
            pool = total // h.shape[1]
            count = (lengths + pool - 1) // pool
            h = h[:, : -(-steps // pool)]
            features.append(zero_padding(h, count))
            counts.append(count)
        return features, counts

    def nll(self, tokens: Tensor, chunk: int = 1 << 16) -> Tensor:
        """Return the negative log-likelihood of each token in bits, (batch, time), any time >= 1.

        Long inputs are read in chunks with carried state, so memory does not grow with time.
        """
        batch, steps = tokens.shape
        chunk = max(1, chunk // self.config.period) * self.config.period
        start = tokens.new_full((batch, 1), self.config.tokenizer.silence)
        previous = torch.cat([start, tokens[:, :-1]], dim=1)
        previous = F.pad(
            previous, (0, -steps % self.config.period), value=self.config.tokenizer.silence
        )
        state, bits = None, []
        for at in range(0, steps, chunk):
            logits, state = self(previous[:, at : at + chunk], state)
            target = tokens[:, at : at + chunk]
            logits = logits[:, : target.shape[1]].float()
            nats = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            bits.append(nats.view_as(target) / math.log(2))
        return torch.cat(bits, dim=1)
