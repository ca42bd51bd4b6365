"""Streams that a kernel takes on together, many samples a launch, and what such an engine is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from audiomamba.engine.layout import Layout, pack_state, unpack_state
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling, check_seed
from audiomamba_kernels.backend import current_stream, on_device

DTYPES = (torch.float32, torch.bfloat16)
LEVELS = 4096  # more do not fit into a program


class StreamEngine(ABC):
    """A model ready for a kernel, for any number of streams.

    They all run on one CUDA stream of PyTorch, the one in which this was made: another does not
    know when memory that is freed has been read. Who uses `Streams` itself enters `cuda_stream`.

    Attributes:
        config: Of the model.
        layout: Of the model.
        levels: Of the tokenizer.
        device: Where streams run: that of the model.
        cuda_stream: The one in which they run, for `torch.cuda.stream`; None on a CPU.

    Raises:
        ValueError: If the model has an attention mixer or more than LEVELS levels, or dtype, that
            of the matrices, is none of DTYPES.
    """

    def __init__(self, network: WaveformModel, dtype: torch.dtype) -> None:
        self.config = network.config
        self.levels = network.config.tokenizer.levels
        self.device = network.embedding.weight.device
        self.cuda_stream = current_stream(self.device)
        if self.levels > LEVELS:
            raise ValueError(
                f"the model has {self.levels} levels; an engine on a GPU at most {LEVELS}"
            )
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}; choose torch.float32 or torch.bfloat16")
        self.layout = Layout(network)

    @abstractmethod
    def launch(
        self,
        tokens: Tensor,
        rows: Tensor,
        nats: Tensor,
        logits: Tensor,
        state: Tensor,
        options: Tensor,
    ) -> None:
        """Take every stream tokens.shape[1] samples on, on the current device and its stream.

        Args:
            tokens: int32 (streams, samples), as `Streams.run` has them.
            rows: int64 (streams, 4): position, previous token, seed, number; the first two are
                moved on.
            nats: float64 (streams,), to which minus the log-likelihood of the tokens is added.
            logits: float32 (streams, levels), overwritten by those of the last token.
            state: float32 (streams, numbers), as `from_layout` gives it.
            options: float64 (3,): temperature, top-k, top-p.
        """

    def from_layout(self, flat: Tensor) -> Tensor:
        """Return flat states of `Layout` (streams, numbers) as the kernel has them."""
        return flat

    def to_layout(self, state: Tensor) -> Tensor:
        """Undo `from_layout`, on any device."""
        return state

    def start(
        self,
        state: Iterable[Tensor] | None = None,
        *,
        streams: int = 1,
        position: int | Sequence[int] = 0,
        previous: int | Sequence[int] | None = None,
    ) -> Streams:
        """Begin streams.

        Args:
            state: Leaves (streams, ...), or (1, ...) for all, of a state of the PyTorch model; None
                is silence.
            streams: Count.
            position: Samples before the first, of all streams or of each; a multiple of
                `config.period` if a state that the PyTorch model's `forward` gave is passed.
            previous: The token before the first, of all streams or of each; None is silence.

        Raises:
            ValueError: If a state is of another model, or previous is no level.
        """
        tokenizer = self.config.tokenizer
        previous = tokenizer.silence if previous is None else previous
        befores = [previous] * streams if isinstance(previous, int) else list(previous)
        positions = [position] * streams if isinstance(position, int) else list(position)
        for before in befores:
            if not 0 <= before < tokenizer.levels:
                raise ValueError(f"previous is {before}; levels are 0 to {tokenizer.levels - 1}")
        given = None if state is None else list(state)
        alike = given is None or all(len(x) == 1 for x in given)
        flat = torch.zeros(1 if alike else streams, self.layout.state_size, device=self.device)
        if given is not None:
            pack_state(self.layout, given, flat)
        packed = self.from_layout(flat)
        return Streams(self, packed.repeat(streams, 1) if alike else packed, positions, befores)


class Streams:
    """Sequences of samples that go on together; their state stays in one place in memory.

    Attributes:
        positions: Samples so far, of each stream.
        logits: Of the latest token, float32 (streams, levels), overwritten by the next.
        nats: Minus the log-likelihood of all tokens that `run` read or drew, at temperature 1 and
            without cuts, float64 (streams,).
    """

    def __init__(
        self, engine: StreamEngine, state: Tensor, positions: list[int], previous: list[int]
    ) -> None:
        streams = len(state)
        self.positions = positions
        self.logits = state.new_zeros(streams, engine.levels)
        self.nats = state.new_zeros(streams, dtype=torch.float64)
        self._engine = engine
        self._state = state
        # position, previous token, seed, number
        rows = [[at, before, 0, 0] for at, before in zip(positions, previous, strict=True)]
        self._stream = torch.tensor(rows, device=state.device)
        self._options = torch.empty(3, dtype=torch.float64, device=state.device)
        self._told: tuple[Any, ...] | None = None

    def run(
        self,
        tokens: Tensor,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        first: int | Sequence[int] = 0,
    ) -> None:
        """Go on by tokens.shape[1] samples; on a GPU this returns before they are made.

        Args:
            tokens: int32 (streams, samples), contiguous, on the engine's device. Negative ones are
                drawn and filled in, others taken as given; they must be levels, which is not
                looked at. From the first to draw for which a logit is not finite, all to draw stay
                -1, in this call and in later ones.
            sampling: How to draw; None is `Sampling()`.
            seed: Of the random numbers, of all streams or of each.
            first: Number of the first stream under its seed, which the others follow; or of each.

        Raises:
            ValueError: If tokens have another shape, type or device, or a seed is out of range.
        """
        streams = len(self.logits)
        if tokens.shape[:1] != (streams,) or tokens.dim() != 2 or not tokens.is_contiguous():
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}; they must be contiguous, ({streams}, "
                "samples)"
            )
        if tokens.dtype != torch.int32 or tokens.device != self._state.device:
            raise ValueError(
                f"tokens are {tokens.dtype} on {tokens.device}; they must be torch.int32 on "
                f"{self._state.device}"
            )
        self._tell(sampling or Sampling(), seed, first)
        if tokens.shape[1] == 0:
            return
        with on_device(tokens):
            self._engine.launch(
                tokens, self._stream, self.nats, self.logits, self._state, self._options
            )
        self.positions = [at + tokens.shape[1] for at in self.positions]

    def previous(self) -> list[int]:
        """Return the latest token of each stream, or the one before the first."""
        return [int(token) for token in self._stream[:, 1].cpu()]

    def _tell(
        self, sampling: Sampling, seed: int | Sequence[int], first: int | Sequence[int]
    ) -> None:
        """Write what is drawn, and how, where the kernel reads it: copies that wait for the GPU."""
        if self._told == (sampling, seed, first):
            return
        streams, levels = self.logits.shape
        seeds = seed if isinstance(seed, Sequence) else [seed] * streams
        numbers = first if isinstance(first, Sequence) else range(first, first + streams)
        keys = [
            [_signed(int(check_seed(key))), _signed(int(check_seed(number, "index")))]
            for key, number in zip(seeds, numbers, strict=True)
        ]
        self._stream[:, 2:] = torch.tensor(keys).to(self._stream.device)
        top_k = levels if sampling.top_k is None else min(int(sampling.top_k), levels)
        top_p = 1.0 if sampling.top_p is None else float(sampling.top_p)
        options = [float(sampling.temperature), top_k, top_p]
        self._options.copy_(torch.tensor(options, dtype=torch.float64))
        self._told = (sampling, seed, first)

    def state(self) -> list[Tensor]:
        """Return the leaves (streams, ...) of the PyTorch model's state at this point, on the CPU.

        A GPU that the streams fill has no room for them once more.
        """
        return unpack_state(self._engine.layout, self._engine.to_layout(self._state.cpu()))


def _signed(number: int) -> int:
    """Return an unsigned number of 64 bits as the signed one of the same bits."""
    return number - (1 << 64) if number >> 63 else number
