"""What a user holds: a network with its tokenizer, in and out of waveforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor

from audiomamba import checkpoint, saved
from audiomamba.arguments import (
    Options,
    Prompt,
    Waveform,
    check_mono,
    check_waveforms,
    count_samples,
    encode_prompts,
)
from audiomamba.config import ModelConfig, Words
from audiomamba.engine.choice import EngineName, Weights, check_weights, choose_engine, open_engine
from audiomamba.engine.place import Draw, Opened, Place
from audiomamba.engine.prompt import read_prompt
from audiomamba.generate import Batch, Job, check_prompts, generate_streams, start_all
from audiomamba.guard import Guard, default_guard
from audiomamba.models.features import encode_rows
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling
from audiomamba.saved import Saved
from audiomamba.session import Session, Take
from audiomamba.tokenizer import Tokenizer
from audiomamba.waveform import as_floats, check_waveform

if TYPE_CHECKING:
    from typing_extensions import Unpack

ENDLESS = 1 << 62  # samples


class AudioModel:
    """An autoregressive model of waveforms.

    Attributes:
        network: The PyTorch module; logits of tokens from tokens.
        name: What it was loaded as.
        weights_sha256: Of the file of weights, in hex; None for a network that came from no file.
        temperature: What its makers found to sound best; used where none is given.
        weights: Of the matrices that generate, not of `network`: "float32", or, of an engine on a
            GPU, "bfloat16"; None is float32, and for `resume` what it was saved with.
        validation_bits: Bits per sample on recordings that it did not learn; None if not known.
        guard: Whether its makers found it to need a guard; used where nothing is said of one.
        words: Of which takes `audiomamba generate` writes the files, as its makers found best; the
            methods here give all, and `audiomamba.words` chooses. None is all.

    Raises:
        ValueError: If the engine has no such weights.

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
        weights: Weights | None = None,
        validation_bits: float | None = None,
        guard: bool = False,
        words: Words | None = None,
    ) -> None:
        self.network = network.eval()
        self.name = name
        self.weights_sha256 = weights_sha256
        self.temperature = temperature
        self.weights = weights
        self.validation_bits = validation_bits
        self.guard = guard
        self.words = words
        if weights is not None:
            check_weights(self.engine, weights)

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
        """What generates: "numba" (a CPU), "cuda" or "triton" (a GPU), "torch" (with attention)."""
        return choose_engine(self.network, self.weights or "float32")

    def default_guard(self) -> Guard:
        """Return the guard of `guard=True`; raise ValueError if `validation_bits` are not known."""
        return default_guard(self.validation_bits, self.name)

    def warm_up(self, notify: Callable[[], None] | None = None) -> None:
        """Compile the engine now if it has not been; else the first `generate` does.

        Args:
            notify: Called once, before code is compiled, which takes up to 20 seconds; not when it
                is loaded. None logs a warning.
        """
        self._open(notify)

    def read(
        self,
        prompt: Waveform | Tensor | Iterable[Waveform],
        notify: Callable[[], None] | None = None,
    ) -> Place:
        """Read a prompt once, for any number of sounds that go on from it.

        Args:
            prompt: Waveform (samples,) in [-1, 1] at `sample_rate`, or an iterable of pieces of
                one, of which only one is held at a time: a prompt may be longer than memory.
            notify: Called once if code must be compiled to read it; None logs a warning.

        Returns:
            What `generate_each`, `start` and `stream` take as a prompt.

        Raises:
            ValueError: If the prompt is empty, not mono, not finite or out of range.
            MemoryError: If not one period of it fits into memory.
        """
        pieces = [prompt] if isinstance(prompt, (np.ndarray, Tensor)) else prompt
        tokens = (self.tokenizer.encode(check_mono(piece)) for piece in pieces)
        place = read_prompt(self.network, self._open(), tokens, notify)
        if not place.position:
            raise ValueError("the prompt is empty")
        return place

    @overload
    def generate(
        self,
        seconds: float = 10.0,
        *,
        samples: int | None = None,
        prompt: Waveform | Tensor | None = None,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[Options],
    ) -> Waveform: ...

    @overload
    def generate(
        self,
        seconds: float = 10.0,
        *,
        samples: int | None = None,
        prompt: Sequence[Waveform | Tensor],
        progress: Callable[[int], None] | None = None,
        **options: Unpack[Options],
    ) -> list[Waveform]: ...

    def generate(
        self,
        seconds: float = 10.0,
        *,
        samples: int | None = None,
        num: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guard: Guard | bool | None = None,
        prompt: Waveform | Tensor | Sequence[Waveform | Tensor] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Waveform | list[Waveform]:
        """Make sound.

        Row i depends on seed, i, the sampling options and its prompt, not on other rows.

        Args:
            seconds: Length of what is made, without the prompt.
            samples: The same in samples, instead of seconds.
            num: How many; None is one, or one for each prompt of a list.
            seed: 0 to 2^64 - 1.
            temperature: Divides the logits; 0 takes the likeliest level at each sample; None is the
                model's own.
            top_k: Draw from this many of the likeliest levels; None is all.
            top_p: Draw from the fewest levels that hold this share of the probability; None is all.
            guard: True draws anew what runs away into noise, by `default_guard`, False never does;
                or a guard; None is the model's own.
            prompt: Waveform (samples,) in [-1, 1] at `sample_rate`, to be continued; or a list of
                these, of any lengths, of which row i continues prompt i.
            progress: Called with the count of samples newly made.

        Returns:
            float32 (num, samples); with a prompt (num, len(prompt) + samples): the prompt and what
            follows it. With a list of prompts a list of such rows.

        Raises:
            ValueError: If an argument is out of range, or a prompt empty, not mono or not finite.
        """
        each = self.generate_each(
            samples=count_samples(seconds, self.sample_rate) if samples is None else samples,
            num=num,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guard=guard,
            prompt=check_waveforms(prompt),
            progress=progress,
        )
        made = {take.index: take.waveform for take in each}  # not their places, which are large
        news = [made[index] for index in sorted(made)]
        if prompt is None:
            return np.stack(news)
        if isinstance(prompt, (np.ndarray, Tensor)):
            return np.stack([np.concatenate([check_mono(prompt), new]) for new in news])
        return [np.concatenate([check_mono(p), new]) for p, new in zip(prompt, news, strict=True)]

    def generate_each(
        self,
        *,
        samples: int,
        num: int | None = None,
        first: int = 0,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guard: Guard | bool | None = None,
        prompt: Prompt | Sequence[Prompt] | None = None,
        batch: Batch = None,
        progress: Callable[[int], None] | None = None,
    ) -> Generator[Take, None, None]:
        """Make sounds first, ..., first + num - 1 and give each as soon as it is finished.

        Arguments are those of `generate`, and checked before this returns. A prompt may also be
        what `read` gives. `batch` is the count of sounds made side by side: None is one a CPU core
        or 1024 on a GPU, "auto" that or as many as fit into memory.

        Returns:
            A generator of takes, without the prompt, in the order in which they are finished.
            Closing it stops the work; no further sound is begun.

        Raises:
            MemoryError: When the first is taken: a batch does not fit, and the message names the
                largest that does; or not one period of a prompt.
        """
        sampling = self._sampling(temperature, top_k, top_p)
        prompts = encode_prompts(self.tokenizer, prompt, num)
        rule = self._guard(guard)
        job = Job(samples=samples, seed=seed, sampling=sampling, prompt=prompts, guard=rule)
        streams = generate_streams(
            *(self.network, job),
            num=len(prompts),
            first=first,
            weights=self.weights or "float32",
            batch=batch,
            progress=progress,
        )

        def decoded() -> Generator[Take, None, None]:
            with closing(streams):
                for made in streams:
                    yield Take(
                        index=made.index,
                        waveform=self.tokenizer.decode(made.tokens),
                        bits_per_sample=made.nats / (math.log(2) * samples),
                        place=made.place,
                        rewinds=made.rewinds,
                    )

        return decoded()

    def start(
        self,
        *,
        num: int | None = None,
        first: int = 0,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guard: Guard | bool | None = None,
        prompt: Prompt | Sequence[Prompt] | None = None,
    ) -> Session:
        """Begin sounds that are made piece by piece, can be saved, and go on later.

        Arguments are those of `generate_each`. Without a guard what is made is the same, however it
        is cut.

        Raises:
            ValueError: If an argument is out of range.
            MemoryError: If so many do not fit into memory; the message names how many do.
        """
        draw = Draw(sampling=self._sampling(temperature, top_k, top_p), seed=seed, first=first)
        prompts = check_prompts(self.network, encode_prompts(self.tokenizer, prompt, num))
        places = start_all(self.network, opened := self._open(), prompts)
        nats, weights, rule = [0.0] * len(places), self.weights or "float32", self._guard(guard)
        begin = Saved(draw=draw, places=places, made=0, nats=nats, weights=weights, guard=rule)
        return Session(self.network, opened, begin)

    def resume(self, path: str | Path) -> Session:
        """Take up the sounds that `Session.save` wrote.

        On the same engine, and without a guard, they go on as if never left.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, was saved with another model or version, or with weights
                that the engine here has not; load the model with others then.
        """
        begin = saved.read(path, self.network)
        begin = replace(begin, weights=self.weights or begin.weights)
        opened = open_engine(self.network, weights=begin.weights)
        return Session(self.network, opened, begin)

    def stream(
        self,
        seconds: float | None = None,
        *,
        samples: int | None = None,
        first: int = 0,
        prompt: Prompt | Sequence[Prompt] | None = None,
        **options: Unpack[Options],
    ) -> Generator[Waveform, None, None]:
        """Make sound and give it in blocks as it is made.

        Arguments are those of `generate_each`; seconds None goes on until the generator is closed.
        A prompt is no part of the blocks.

        Returns:
            A generator of blocks, float32 (num, some), which together are what `generate` makes;
            some tens of milliseconds of computing each, of hundreds of streams more; with a guard
            half of what it judges, by `Guard.back` later than made. Closing it stops the work.

        Raises:
            ValueError: If an argument is out of range.
        """
        if samples is None:
            samples = ENDLESS if seconds is None else count_samples(seconds, self.sample_rate)
        return self.start(first=first, prompt=prompt, **options).blocks(samples)

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
        self, waveform: Waveform | Tensor, lengths: Tensor | Sequence[int] | None = None
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
            ValueError: If a type, a shape, a length or a sample is none.
        """
        rows = torch.from_numpy(as_floats(waveform, "the waveform"))
        lengths = None if lengths is None else torch.as_tensor(lengths, device=self.device)
        tokens = encode_rows(self.tokenizer, rows.to(self.device), lengths)
        return self.network.extract_features(tokens, lengths)

    def save(self, directory: str | Path) -> None:
        """Write a folder that `load` reads: config.json and model.safetensors, in float32."""
        bits = self.validation_bits
        checkpoint.save(
            *(directory, self.config, self.network.state_dict()),
            temperature=self.temperature,
            guard=self.guard,
            words=self.words,
            training=None if bits is None else {"validation_bits_per_sample": bits},
        )

    def _open(self, notify: Callable[[], None] | None = None) -> Opened:
        return open_engine(self.network, notify=notify, weights=self.weights or "float32")

    def _sampling(self, own: float | None, top_k: int | None, top_p: float | None) -> Sampling:
        return Sampling(self.temperature if own is None else own, top_k, top_p)

    def _guard(self, guard: Guard | bool | None) -> Guard | None:
        guard = self.guard if guard is None else guard
        return (self.default_guard() if guard is True else guard) or None
