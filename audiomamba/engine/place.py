"""Where a stream stands, and how it is drawn from there: all that its next samples depend on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.sampling import Sampling, check_seed

Tokens = NDArray[np.integer[Any]]
Key = tuple[int, int]
Blocks = Generator[Tokens, None, None]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a stream has behind it.

    Attributes:
        state: Leaves (1, ...) of the PyTorch model's state, in the host's memory, so that a GPU has
            room for the streams that run.
        position: Samples so far.
        previous: The latest token; silence before the first.
    """

    state: list[Tensor]
    position: int
    previous: int


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How streams are drawn that run side by side.

    Attributes:
        sampling: Temperature and cuts.
        seed: Of the random numbers.
        first: Number of the first stream under that seed; the others follow it.
        keys: Seed and number of each stream, where they do not follow from these.

    Raises:
        ValueError: If a number is out of range.
    """

    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    first: int = 0
    keys: tuple[Key, ...] | None = None

    def __post_init__(self) -> None:
        for seed, number in self.keys or ((self.seed, self.first),):
            check_seed(seed)
            check_seed(number, "first")

    def key(self, i: int) -> Key:
        """Return seed and number of the i-th stream."""
        return (self.seed, self.first + i) if self.keys is None else self.keys[i]


class Running(Protocol):
    """Streams side by side, whatever the engine."""

    def read(self, tokens: Tokens) -> None:
        """Take all streams through the same given tokens (samples,), levels."""

    def blocks(self, samples: int) -> Blocks:
        """Draw so many samples of each stream; yield blocks (streams, some) in order.

        The next block may be made while one is looked at, so the streams are at a place that means
        something only when the last one was taken. Closing the generator stops the work.
        """

    def nats(self) -> NDArray[np.float64]:
        """Return minus the log-likelihood of all tokens read or drawn here, (streams,).

        It is that of the model itself: temperature 1 and no cuts.
        """

    def places(self) -> list[Place]:
        """Return where each stream stands."""


class Opened(NamedTuple):
    """An engine that holds a model.

    Attributes:
        start: Begins streams at places.
        together: How many run side by side unasked.
    """

    start: Callable[[Sequence[Place], Draw], Running]
    together: int


def joined(places: Sequence[Place]) -> list[Tensor]:
    """Return the leaves (streams, ...) of the states of places."""
    return [torch.cat(rows) for rows in zip(*(place.state for place in places), strict=True)]


def parted(
    state: Sequence[Tensor], positions: Sequence[int], previous: Sequence[int]
) -> list[Place]:
    """Return the places of streams whose leaves (streams, ...) are given together."""
    here = [x.cpu() for x in state]
    return [
        Place(state=[x[i : i + 1].clone() for x in here], position=position, previous=token)
        for i, (position, token) in enumerate(zip(positions, previous, strict=True))
    ]
