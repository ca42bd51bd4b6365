"""A word heard in a recording: log-mel features, a Mamba encoder, a mean over frames, a choice."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from audiomamba import checkpoint
from audiomamba.config import checked
from audiomamba.encoder import MambaEncoder
from audiomamba.encoder_config import EncoderConfig
from audiomamba.features import frame_size, log_mel
from audiomamba.waveform import check_waveform
from audiomamba_kernels import Backend
from audiomamba_kernels.ragged import zero_padding

QUIETEST = -16.0  # log power of a band: below is digital silence, of which no room is made
CENTRE, SCALE = -8.0, 4.0  # speech then lies within some +-2, without a look at the whole recording


class Heard(NamedTuple):
    """A word, and how probable the classifier takes it to be."""

    word: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A classifier of short recordings.

    Attributes:
        words: What it tells apart, in the order of its outputs.
        encoder: Its encoder; `d_input` is the number of mel bands.
        sample_rate: Hz.
    """

    words: tuple[str, ...]
    encoder: EncoderConfig
    sample_rate: int = 16000

    def __post_init__(self) -> None:
        if len(set(self.words)) < 2 or len(set(self.words)) < len(self.words):
            raise ValueError(f"words are {self.words}; they must be at least two, each once")
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate is {self.sample_rate}; it must be positive, in Hz")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClassifierConfig:
        """Build from `to_dict`'s result.

        Raises:
            ValueError: If a key is missing or unknown (the first is named), or a value is out of
                range.
        """
        values = checked(cls, values, "classifier")
        encoder = EncoderConfig.from_dict(values["encoder"])
        return cls(**{**values, "words": tuple(values["words"]), "encoder": encoder})


class AudioClassifier(nn.Module):
    """Recordings to words.

    Args:
        config: What it is made of.
        backend: Which kernels run; None is the fastest.

    Example:
        >>> classifier = AudioClassifier.from_pretrained("digit_classifier")  # doctest: +SKIP
        >>> classifier.classify(audio.read("seven.wav", 16000))  # doctest: +SKIP
        Heard(word='seven', probability=0.98)
    """

    def __init__(self, config: ClassifierConfig, *, backend: Backend | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = MambaEncoder(config.encoder, backend=backend)
        self.head = nn.Linear(config.encoder.d_model, len(config.words))

    @property
    def shortest(self) -> int:
        """Samples that a recording has at least."""
        window, hop = frame_size(self.config.sample_rate)
        return window + (self.config.encoder.subsampling - 1) * hop

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (batch, words) of waveforms.

        A row too short for a frame gives the bias of the head: the same for all such rows, and of
        no recording; `classify` refuses one.

        Args:
            waveform: Floating point, (batch, samples), in [-1, 1] at the config's rate.
            lengths: Samples of each, (batch,), integers; None is all. What follows has no effect.

        Raises:
            ValueError: If a shape, a type or a length is wrong.
        """
        config = self.config
        features, lengths = scaled_log_mel(
            waveform, lengths, n_mels=config.encoder.d_input, sample_rate=config.sample_rate
        )
        logits: Tensor = self.head(mean_over_frames(*self.encoder(features, lengths)))
        return logits

    @torch.no_grad()
    def classify(self, waveform: Any) -> Heard:
        """Return the likeliest word of one recording.

        Args:
            waveform: Floating point, (samples,), in [-1, 1] at the config's rate, an array or a
                tensor.

        Raises:
            ValueError: If it is too short for a frame, NaN or infinite, or its shape or type is
                wrong.
        """
        x = torch.from_numpy(check_waveform(waveform, "the recording"))
        config, needed = self.config, self.shortest
        if x.dim() != 1 or len(x) < needed:
            raise ValueError(
                f"the recording has shape {tuple(x.shape)}; it must be (samples,), at least "
                f"{needed} of them ({needed / config.sample_rate:.3f} s)"
            )
        probabilities = self(x[None].to(self.head.weight.device))[0].softmax(0)
        best = int(probabilities.argmax())
        return Heard(config.words[best], float(probabilities[best]))

    def save_pretrained(self, directory: str | Path, *, half: bool = False) -> None:
        """Write config.json and model.safetensors, in float16 if `half`, else in float32."""
        dtype = torch.float16 if half else torch.float32
        checkpoint.write(directory, {"classifier": self.config.to_dict()}, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "digit_classifier", *, backend: Backend | None = None
    ) -> AudioClassifier:
        """Load a classifier, on the CPU, in float32, in evaluation mode.

        Args:
            name: A shipped name, a folder, or a Hugging Face id (owner/name).
            backend: As for the class.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the files are damaged, or are of another model.
        """
        directory = checkpoint.find(name, "classifier")
        config = checkpoint.read(directory, "classifier", ClassifierConfig.from_dict)
        return checkpoint.restore(directory, lambda: cls(config, backend=backend))


def scaled_log_mel(
    waveform: Tensor, lengths: Tensor | None = None, *, n_mels: int = 80, sample_rate: int = 16000
) -> tuple[Tensor, Tensor]:
    """Return `log_mel`, clipped where it is quieter than any room, and around zero."""
    features, lengths = log_mel(waveform, lengths, n_mels=n_mels, sample_rate=sample_rate)
    return zero_padding((features.clamp(min=QUIETEST) - CENTRE) / SCALE, lengths), lengths


def mean_over_frames(y: Tensor, lengths: Tensor) -> Tensor:
    """Return means (batch, d) of y (batch, time, d) over the frames before each length."""
    return zero_padding(y, lengths).sum(1) / lengths.clamp(min=1)[:, None]
