"""What a user holds: a network with its tokenizer, in and out of waveforms."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba import checkpoint
from audiomamba.config import ModelConfig
from audiomamba.engine.engine import Engine
from audiomamba.files import sha256
from audiomamba.generate import EngineName, Job, choose_engine, generate_streams
from audiomamba.models.features import encode_rows
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling, check_real
from audiomamba.tokenizer import Tokenizer

Waveform = NDArray[np.float32]


class AudioModel:
    """An autoregressive model of waveforms.

    Attributes:
        network: The PyTorch module; logits of tokens from tokens.
        name: What it was loaded as.
        weights_sha256: Of the file of weights, in hex; None for a network that came from no file.
        temperature: What its makers found to sound best; used where none is given.

    Example:
        >>> model = audiomamba.load("piano")  # doctest: +SKIP
        >>> waveform = model.generate(seconds=10, seed=0)[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        network: WaveformModel,
        *,
        name: str = "unnamed",
        weights_sha256: str | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.network = network.eval()
        self.name = name
        self.weights_sha256 = weights_sha256
        self.temperature = temperature

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

    @property
    def engine(self) -> EngineName:
        """What generates: "numba" (on a CPU), "triton" (on a GPU), "torch" (with attention)."""
        return choose_engine(self.network)

    def warm_up(self, notify: Callable[[], None] | None = None) -> None:
        """Compile the engine now if it has not been; else the first `generate` does.

        Args:
            notify: Called once, before code is compiled, which takes about 20 seconds; not when it
                is loaded. None logs a warning.
        """
        if self.engine == "numba":
            Engine(self.network).warm_up(notify)

    def generate(
        self,
        seconds: float = 10.0,
        *,
        samples: int | None = None,
        num: int = 1,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        prompt: Waveform | Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Waveform:
        """Make sound.

        Row i depends on seed, i, the sampling options and the prompt, not on `num`.

        Args:
            seconds: Length of what is made, without the prompt.
            samples: The same in samples, instead of seconds.
            num: How many.
            seed: 0 to 2^64 - 1.
            temperature: Divides the logits; 0 takes the likeliest level at each sample; None is the
                model's own.
            top_k: Draw from this many of the likeliest levels; None is all.
            top_p: Draw from the fewest levels that hold this share of the probability; None is all.
            prompt: Waveform (samples,) in [-1, 1] at `sample_rate`, to be continued.
            progress: Called with the count of samples newly made.

        Returns:
            float32 (num, samples); with a prompt (num, len(prompt) + samples): the prompt and what
            follows it.

        Raises:
            ValueError: If an argument is out of range, or the prompt empty, not mono or not finite.
        """
        before = _prompt(prompt)
        each = self.generate_each(
            samples=count_samples(seconds, self.sample_rate) if samples is None else samples,
            num=num,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt=prompt,
            progress=progress,
        )
        rows = sorted(each, key=lambda pair: pair[0])
        return np.stack([np.concatenate([before, waveform]) for _, waveform in rows])

    def generate_each(
        self,
        *,
        samples: int,
        num: int = 1,
        first: int = 0,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        prompt: Waveform | Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Generator[tuple[int, Waveform], None, None]:
        """Make sounds first, ..., first + num - 1 and give each as soon as it is finished.

        Arguments are those of `generate`, and checked before this returns.

        Returns:
            A generator of (index, float32 waveform (samples,)), without the prompt, in the order in
            which they are finished. Closing it stops the work; no further sound is begun.
        """
        job = Job(
            samples=samples,
            seed=seed,
            sampling=Sampling(
                self.temperature if temperature is None else temperature, top_k, top_p
            ),
            prompt=self.tokenizer.encode(_prompt(prompt)),
        )
        streams = generate_streams(self.network, job, num=num, first=first, progress=progress)

        def decoded() -> Generator[tuple[int, Waveform], None, None]:
            with closing(streams):
                for index, tokens in streams:
                    yield index, self.tokenizer.decode(tokens)

        return decoded()

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

    def save(self, directory: str | Path) -> None:
        """Write a folder that `load` reads: config.json and model.safetensors, in float32."""
        checkpoint.save(directory, self.config, self.network.state_dict())


def load(name: str | Path, device: str | torch.device = "cpu") -> AudioModel:
    """Load a model.

    Args:
        name: A shipped name, a folder, or a Hugging Face id (owner/name).
        device: "cpu", "cuda", "cuda:1".

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If the files are damaged or the device cannot be used.
    """
    place = check_device(device)
    directory = checkpoint.find(name)
    return AudioModel(
        checkpoint.load(directory).to(place),
        name=str(name),
        weights_sha256=sha256(directory / checkpoint.WEIGHTS),
        temperature=checkpoint.read_temperature(directory),
    )


def count_samples(seconds: float, sample_rate: int) -> int:
    """Return the nearest count of samples.

    Raises:
        ValueError: If that is no sample, or seconds is not finite or no number.
    """
    check_real(seconds, "seconds")
    if not 0.5 / sample_rate < seconds < float("inf"):
        raise ValueError(f"seconds is {seconds}; it must be positive, and long enough for a sample")
    return round(seconds * sample_rate)


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that can be used here; raise ValueError with the reason if it cannot."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {str(device)!r}; choose 'cpu', 'cuda' or 'cuda:1'") from error
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise ValueError(f"device is {str(device)!r}, but PyTorch sees {count} CUDA devices")
    elif place.type != "cpu":
        raise ValueError(f"device is {str(device)!r}; choose 'cpu', 'cuda' or 'cuda:1'")
    return place


def _prompt(prompt: Waveform | Tensor | None) -> Waveform:
    """Return a prompt as an array, empty if there is none."""
    if prompt is None:
        return np.empty(0, np.float32)
    waveform = check_waveform(prompt, "the prompt")
    if waveform.ndim != 1:
        raise ValueError(f"the prompt has shape {waveform.shape}; it must be mono, (samples,)")
    return waveform


def check_waveform(waveform: Any, name: str) -> Waveform:
    """Return a waveform as an array, (samples,) or (batch, samples), finite and not empty."""
    wave: Any = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else waveform
    if not isinstance(wave, np.ndarray) or wave.dtype.kind != "f":
        kind = wave.dtype if isinstance(wave, np.ndarray) else type(wave).__name__
        raise ValueError(f"{name} is {kind}; it must be a floating-point array or tensor")
    if wave.ndim not in (1, 2):
        raise ValueError(
            f"{name} has shape {wave.shape}; it must be (samples,) or (batch, samples)"
        )
    if wave.size == 0:
        raise ValueError(f"{name} is empty")
    if not np.isfinite(wave).all():
        at = np.unravel_index(int(np.argmin(np.isfinite(wave))), wave.shape)[-1]
        raise ValueError(f"{name} is NaN or infinite at sample {at}")
    return wave.astype(np.float32, copy=False)
