"""What the commands are tested with: a model that makes noise, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from audiomamba.tokenizer import Tokenizer

RATE = 16000


class StandIn:
    """A model that makes noise, sample i of (seed, i)."""

    name = "owner/stand in"
    sample_rate = RATE
    tokenizer = Tokenizer()
    weights_sha256 = "0123"
    temperature = 0.75
    guard = False
    words = None
    engine = "numba"
    weights = None
    nll_bits = 2.5
    bits = (4.0, 2.0, 3.0)
    slow_to_compile = False

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.interrupt_at: int | None = None
        self.closed = False

    def warm_up(self, notify: Callable[[], None]) -> None:
        if self.slow_to_compile:
            notify()

    def read(self, pieces: Iterator[np.ndarray], notify: Callable[[], None]) -> np.ndarray:
        if self.slow_to_compile:
            notify()
        return np.concatenate(list(pieces))

    def generate_each(
        self, *, samples: int, num: int, seed: int, progress: Callable[[int], None], **options: Any
    ) -> Iterator[SimpleNamespace]:
        self.calls.append({"samples": samples, "num": num, "seed": seed, **options})
        try:
            for index in reversed(range(num)):
                if index == self.interrupt_at:
                    raise KeyboardInterrupt
                progress(samples)
                yield SimpleNamespace(
                    index=index,
                    waveform=noise(samples, seed, index),
                    bits_per_sample=self.bits[index % len(self.bits)],
                    rewinds=None,
                )
        finally:
            self.closed = True

    def nll(self, waveform: np.ndarray) -> float:
        self.calls.append({"waveform": waveform})
        return self.nll_bits


def noise(samples: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


Run = Callable[..., tuple[int, str, str]]


def is_one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
