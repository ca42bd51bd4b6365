"""What a network makes of given waveforms: how likely they are, and its features of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from audiomamba.config import ModelConfig
from audiomamba.models.features import encode_rows
from audiomamba.models.waveform import WaveformModel
from audiomamba.tokenizer import Tokenizer
from audiomamba.waveform import Waveform, check_waveform


class Listener:
    """A network with its tokenizer, as far as it reads waveforms.

    Attributes:
        network: The PyTorch module; logits of tokens from tokens.
    """

    def __init__(self, network: WaveformModel) -> None:
        self.network = network.eval()

    @property
    def config(self) -> ModelConfig:
        """All that defines the network."""
        return self.network.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Waveform to tokens and back."""
        return self.config.tokenizer

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.config.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.embedding.weight.device

    @torch.inference_mode()
    def nll(self, waveform: Waveform | Tensor) -> float:
        """Return the mean negative log-likelihood of a waveform in bits per sample.

        Args:
            waveform: Floating point, (samples,) or (batch, samples), in [-1, 1] at `sample_rate`.

        Raises:
            ValueError: If it is empty, not finite, or out of range.
        """
        tokens = self.tokenizer.encode(check_waveform(waveform, "the waveform"))
        batch = torch.from_numpy(np.atleast_2d(tokens).astype(np.int64)).to(self.device)
        return float(self.network.nll(batch).double().mean())

    @torch.no_grad()
    def extract_features(
        self, waveform: Waveform | Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what each block of the network makes of waveforms.

        Memory is that of all blocks at their rates; to train the network with it, or for one
        sequence at one rate, take `audiomamba.models.features.WaveformFeatures`.

        Args:
            waveform: Floating point, (batch, samples), in [-1, 1] at `sample_rate`.
            lengths: Samples of each, (batch,); None is all. What follows in a row has no effect.

        Returns:
            As `WaveformModel.extract_features`: a tensor (batch, frames_i, d_i) and the counts of
            frames (batch,) for each block, without gradient.

        Raises:
            ValueError: If a shape, a length or a sample is none.
        """
        tokens = encode_rows(self.tokenizer, torch.as_tensor(waveform), lengths).to(self.device)
        return self.network.extract_features(
            tokens, None if lengths is None else lengths.to(self.device)
        )
