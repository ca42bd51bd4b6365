"""A model made ready for the compiled loop, and a stream of samples that it makes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.config import ModelConfig
from audiomamba.engine import step
from audiomamba.engine.layout import Floats, Layout, aligned, flatten_state, unflatten_state
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling, check_seed
from audiomamba_kernels.jit import announce

Tokens = NDArray[np.int64]

_log = logging.getLogger(__name__)


def supports(config: ModelConfig) -> bool:
    """Say whether a model can run here: all mixers but attention."""
    return all(tier.mixer != "attention" for tier in config.tiers)


class Engine:
    """A copy of a model's weights as the compiled loop wants them, for any number of streams.

    Raises:
        ValueError: If the model has an attention mixer.
    """

    def __init__(self, network: WaveformModel) -> None:
        self.config = network.config
        self.layout = Layout(network)

    def start(
        self,
        state: Iterable[Tensor] | None = None,
        *,
        position: int = 0,
        previous: int | None = None,
    ) -> Stream:
        """Begin a stream.

        Args:
            state: Leaves (1, ...) of a state of the PyTorch model; None is silence.
            position: Samples before the stream's first, a multiple of `config.period` if a state
                that the PyTorch model's `forward` gave is passed.
            previous: The token before the first; None is silence.
        """
        flat = aligned(self.layout.state_size)
        if state is not None:
            flat = flatten_state(self.layout, state)
        tokenizer = self.config.tokenizer
        previous = tokenizer.silence if previous is None else previous
        if not 0 <= previous < tokenizer.levels:
            raise ValueError(f"previous is {previous}; levels are 0 to {tokenizer.levels - 1}")
        return Stream(self.layout, flat, int(position), int(previous))

    def warm_up(self, notify: Callable[[], None] | None = None) -> None:
        """Compile now, unless this or an earlier process has.

        Args:
            notify: Called once, before code is compiled, which takes up to 20 seconds; not when it
                is loaded. None logs a warning.
        """
        with announce(notify or log_compiling):
            self.start().run(np.empty(0, np.int64))


class Stream:
    """One sequence of samples: its state, its position, and the buffers of a step.

    Attributes:
        position: Samples so far.
        previous: The latest token, or the one before the first.
        logits: Of the latest token, float32 (levels,), overwritten by the next.
    """

    def __init__(self, layout: Layout, state: Floats, position: int, previous: int) -> None:
        levels, width = len(layout.plan.embedding), layout.width
        self.position = position
        self.previous = previous
        self.logits = aligned(levels)
        self._layout = layout
        self._state = state
        self._nats = np.zeros(1)
        self._scratch = step.scratch_for(width, levels)

    @property
    def nats(self) -> float:
        """Minus the log-likelihood of all tokens `run` read or drew, at temperature 1, uncut."""
        return float(self._nats[0])

    def run(
        self, tokens: Tokens, sampling: Sampling | None = None, seed: int = 0, index: int = 0
    ) -> None:
        """Go on by len(tokens) samples.

        Args:
            tokens: int64 (samples,). Negative ones are drawn and filled in, others taken as given.
            sampling: How to draw; None is `Sampling()`.
            seed: Of the random numbers.
            index: The stream's number under that seed.

        Raises:
            ValueError: If a logit is not finite, tokens are no levels, or a seed is out of range.
        """
        sampling = sampling or Sampling()
        levels = len(self.logits)
        flags = tokens.flags
        if tokens.dtype != np.int64 or not (flags.c_contiguous and flags.writeable):
            raise ValueError("tokens must be a contiguous, writeable array of int64")
        if len(tokens) and tokens.max() >= levels:
            raise ValueError(f"a token is {tokens.max()}; the model has levels 0 to {levels - 1}")
        made = step.run(
            self._layout.plan,
            self._state,
            self._scratch,
            self.logits,
            self._nats,
            tokens,
            self.previous,
            self.position,
            np.float32(sampling.temperature),
            levels if sampling.top_k is None else min(int(sampling.top_k), levels),
            1.0 if sampling.top_p is None else float(sampling.top_p),
            check_seed(seed),
            check_seed(index, "index"),
        )
        if made < len(tokens):
            raise ValueError(
                f"a logit is not finite at sample {self.position + made}; the weights are damaged "
                "or training diverged"
            )
        if made:
            self.previous = int(tokens[-1])
        self.position += made

    def state(self) -> list[Tensor]:
        """Return the leaves (1, ...) of the PyTorch model's state at this point."""
        return unflatten_state(self._layout, self._state)


def log_compiling() -> None:
    """Log that code is compiled, which takes a while."""
    _log.warning(
        "compiling the generation engine for this machine, up to 20 seconds; the next start finds "
        "it done"
    )
