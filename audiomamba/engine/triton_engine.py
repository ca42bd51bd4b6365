"""A model made ready for the kernel that speaks on a GPU, and the streams that it makes there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from audiomamba.engine.layout import Layout, pack_state, unpack_state
from audiomamba.engine.triton_loop import run_kernel
from audiomamba.engine.triton_plan import plan_net
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling, check_seed
from audiomamba_kernels.backend import on_device

DTYPES = (torch.float32, torch.bfloat16)
LEVELS = 4096  # more do not fit in registers
NUMBERS_A_THREAD = 64  # of a matrix, in registers at once


class TritonEngine:
    """A copy of a model's weights as the kernel wants them, for any number of streams.

    Args:
        network: Its device is where streams run.
        dtype: Of the matrices, torch.float32 or torch.bfloat16. Everything else is float32.
        num_warps: Of a stream, 1 to 16. Fewer let more streams share a multiprocessor; more share
            the work of a product, and wait longer for each other.

    Raises:
        ValueError: If the model has an attention mixer or more than LEVELS levels, or dtype is
            another.
    """

    def __init__(
        self, network: WaveformModel, *, dtype: torch.dtype = torch.float32, num_warps: int = 4
    ) -> None:
        levels = network.config.tokenizer.levels
        if levels > LEVELS:
            raise ValueError(f"the model has {levels} levels; the Triton engine at most {LEVELS}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}; choose torch.float32 or torch.bfloat16")
        self.config = network.config
        self.layout = Layout(network)
        self.num_warps = num_warps
        self.tile = NUMBERS_A_THREAD * 32 * num_warps
        self.net, weights, matrices = plan_net(self.layout, dtype.itemsize)
        device = network.embedding.weight.device
        self.weights, self.matrices = weights.to(device), matrices.to(device, dtype)

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
        flat = self.weights.new_zeros(streams, self.layout.state_size)
        if state is not None:
            pack_state(self.layout, state, flat)
        return Streams(self, flat, positions, befores)


class Streams:
    """Sequences of samples that go on together; their state stays in one place in memory.

    Attributes:
        positions: Samples so far, of each stream.
        logits: Of the latest token, float32 (streams, levels), overwritten by the next.
        nats: Minus the log-likelihood of all tokens that `run` read or drew, at temperature 1 and
            without cuts, float64 (streams,).
    """

    def __init__(
        self, engine: TritonEngine, state: Tensor, positions: list[int], previous: list[int]
    ) -> None:
        streams = len(state)
        self.positions = positions
        self.logits = state.new_zeros(streams, engine.net.levels)
        self.nats = state.new_zeros(streams, dtype=torch.float64)
        self._engine = engine
        self._state = state
        # position, previous token, seed, number
        rows = [[at, before, 0, 0] for at, before in zip(positions, previous, strict=True)]
        self._stream = torch.tensor(rows, device=state.device)
        self._options = torch.empty(3, dtype=torch.float64, device=state.device)
        self._told: tuple[Sampling, int, int] | None = None

    def run(
        self, tokens: Tensor, sampling: Sampling | None = None, seed: int = 0, first: int = 0
    ) -> None:
        """Go on by tokens.shape[1] samples; on a GPU this returns before they are made.

        Args:
            tokens: int32 (streams, samples), contiguous, on the engine's device. Negative ones are
                drawn and filled in, others taken as given; they must be levels, which is not
                looked at. From where a logit is not finite, those drawn stay -1.
            sampling: How to draw; None is `Sampling()`.
            seed: Of the random numbers.
            first: Number of the first stream under that seed; the others follow it.

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
        if tokens.shape[1] == 0:
            return
        self._tell(sampling or Sampling(), seed, first)
        engine = self._engine
        with on_device(tokens):
            run_kernel[(streams,)](
                tokens,
                self._stream,
                self.nats,
                self.logits,
                self._state,
                engine.weights,
                engine.matrices,
                self._options,
                tokens.shape[1],
                NET=engine.net,
                TILE=engine.tile,
                num_warps=engine.num_warps,
            )
        self.positions = [at + tokens.shape[1] for at in self.positions]

    def previous(self) -> list[int]:
        """Return the latest token of each stream, or the one before the first."""
        return [int(token) for token in self._stream[:, 1].cpu()]

    def _tell(self, sampling: Sampling, seed: int, first: int) -> None:
        """Write what is drawn, and how, where the kernel reads it: copies that wait for the GPU."""
        if self._told == (sampling, seed, first):
            return
        streams, levels = self.logits.shape
        key = _signed(int(check_seed(seed)))
        numbers = [_signed(int(check_seed(first + i, "index"))) for i in range(streams)]
        device = self._stream.device
        self._stream[:, 2:] = torch.tensor([[key, number] for number in numbers]).to(device)
        top_k = levels if sampling.top_k is None else min(int(sampling.top_k), levels)
        top_p = 1.0 if sampling.top_p is None else float(sampling.top_p)
        options = [float(sampling.temperature), top_k, top_p]
        self._options.copy_(torch.tensor(options, dtype=torch.float64))
        self._told = (sampling, seed, first)

    def state(self) -> list[Tensor]:
        """Return the leaves (streams, ...) of the PyTorch model's state at this point."""
        return unpack_state(self._engine.layout, self._state)


def _signed(number: int) -> int:
    """Return an unsigned number of 64 bits as the signed one of the same bits."""
    return number - (1 << 64) if number >> 63 else number
