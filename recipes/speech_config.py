"""What a run of a speech recipe is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from audiomamba.encoder_config import EncoderConfig

BANDS = 80


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: data, model, training.

    Attributes:
        data: Folder of a folder of clips for each word, as Speech Commands has.
        out: Folder for results; what it has is not done again.
        front_end: mel (80 log-mel bands) or waveform (80 filters on samples, learnt).
        d_model: Width of "mamba"; the other models get as many parameters.
        n_layers: Layers of each model.
        feed_forward: Of "mamba" and "mamba-causal", inner width over d_model; 0 is none.
        conv_kernel: Of "mamba", "mamba-causal" and "conformer", frames; odd.
        subsampling: Frames of 10 ms that become one: 1, 2 or 4.
        dropout: Inside the models.
        steps: Optimiser steps.
        batch: Utterances a step.
        learning_rate: AdamW's, at its highest: 10 % warm-up, then half a cosine to zero.
        weight_decay: AdamW's; none on A, the step size, D, biases and norms.
        gradient_clip: Largest norm of the gradient.
        even_speakers: 0 draws all training clips alike, 1 all their speakers alike.
        speed: A training clip is up to so much of itself faster or slower, its pitch with it.
        gain_db: A training clip is up to so much louder or softer.
        noise: Amplitude of white noise, at most.
        masks: Bands of frequency and of time that are hidden, as SpecAugment does.
        mask_bands: Mel bands of a mask, at most.
        mask_share: Share of an utterance of a mask, at most.
        precision: 32-true or bf16-mixed.
        validate_every: Steps from one validation to the next.
        device: cpu, cuda, or auto: cuda where there is one.
    """

    data: str = "data/sc09"
    out: str = ""
    front_end: str = "mel"
    d_model: int = 96
    n_layers: int = 4
    feed_forward: int = 2
    conv_kernel: int = 15
    subsampling: int = 2
    dropout: float = 0.1
    steps: int = 1500
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    even_speakers: float = 0.5
    speed: float = 0.1
    gain_db: float = 6.0
    noise: float = 0.003
    masks: int = 2
    mask_bands: int = 12
    mask_share: float = 0.1
    precision: str = "32-true"
    validate_every: int = 250
    device: str = "auto"

    def __post_init__(self) -> None:
        def require(name: str, good: bool, what: str) -> None:
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {what}")

        for name in ("steps", "batch", "validate_every"):
            require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("gain_db", "noise", "masks", "weight_decay"):
            require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("learning_rate", "gradient_clip"):
            require(name, getattr(self, name) > 0, "more than 0")
        require("front_end", self.front_end in ("mel", "waveform"), "mel or waveform")
        require("precision", self.precision in ("32-true", "bf16-mixed"), "32-true or bf16-mixed")
        require("conv_kernel", self.conv_kernel % 2 == 1, "odd, which the Conformer needs")
        require("mask_bands", 0 <= self.mask_bands <= BANDS, f"0 to {BANDS}")
        require("even_speakers", 0 <= self.even_speakers <= 1, "0 to 1")
        require("speed", 0 <= self.speed < 1, "0 to below 1")
        require("mask_share", 0 <= self.mask_share <= 1, "0 to 1")
        self.encoder("inner")  # refuses what no encoder has

    def encoder(self, direction: Any, d_model: int | None = None) -> EncoderConfig:
        """Return the config of a Mamba encoder."""
        return EncoderConfig(
            d_input=BANDS,
            d_model=d_model or self.d_model,
            n_layers=self.n_layers,
            direction=direction,
            subsampling=self.subsampling,
            feed_forward=self.feed_forward,
            conv_kernel=self.conv_kernel,
            dropout=self.dropout,
        )
